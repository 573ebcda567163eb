"""Trains the dense gate, separately from the loop (2602.08382, stage 3): from many kinds of data to calibrated weights.

`sources.py` lists the collections of documents and queries, `sets.py`, `pages.py` and `synthetic.py` make them, and
`styles.py` restyles queries. `states.py` collects the gate's inputs in the loop and `cache.py` stores them;
`variants.py` changes first passes. `networks.py` fits one network, `fitting.py` all of a gate, `thresholds.py` chooses
thresholds, `judging.py` evaluates and `run.py` is the stage.
"""

from compmem_research.training.dense_gate.run import train
from compmem_research.training.dense_gate.settings import DenseGateTraining

__all__ = ["DenseGateTraining", "train"]
