"""Trains the dense gate, apart from the loop (2602.08382, stage 3): from data of many kinds to calibrated weights.

`sources.py` names the collections of documents and queries, `sets.py`, `pages.py` and `synthetic.py` make them, and
`styles.py` restyles queries. `states.py` goes through the looks of the loop and `cache.py` keeps them; `variants.py`
changes first looks. `networks.py` fits one network, `fitting.py` all of a gate, `thresholds.py` chooses, `judging.py`
measures and `run.py` is the stage.
"""

from compmem_research.training.dense_gate.run import train
from compmem_research.training.dense_gate.settings import DenseGateTraining

__all__ = ["DenseGateTraining", "train"]
