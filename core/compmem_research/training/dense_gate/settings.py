"""Settings of one training run of the dense gate."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseGateTraining:
    """Settings of one training run, saved in its report. Sources without a data file are left out."""

    out: Path
    """Folder for `dense_gate.safetensors` and `dense_gate.json`."""
    cache: Path | None = None
    """Folder of cached states of each source; a run reuses those of an earlier one with the same data."""
    multihop: Path | None = None
    """Questions over several paragraphs; see `compmem_research.tasks.multihop`."""
    singlehop: Path | None = None
    """Questions about one text each; see `compmem_research.tasks.singlehop`."""
    clapnq: Path | None = None
    """Questions with one paragraph each, which answers some and not others; the form of `multihop`."""
    pubmedqa: Path | None = None
    """Questions with the abstract that answers each; the form of `multihop`."""
    tatqa: Path | None = None
    """Questions with the table and paragraphs of one report each; the form of `multihop`."""
    pages: tuple[Path, ...] = ()
    """Files of pages (`{"title", "text"}` lines): the first gives distractors, the second queries, the third filler for
    synthetic contexts; fewer files are reused."""
    docstrings: bool = True
    """Use the docstrings of Python's standard library and NumPy."""
    synthetic: bool = True
    """Use needles, variables and made-up worlds."""
    per_source: int = 400
    """Most questions of one source, before restyling."""
    passages: int = 1200
    """Most passages in the index of one source of single questions, and half as many pages."""
    steps: int = 4
    """Reads of each rollout; half as many if one block answers."""
    hidden: int = 64
    """Width of the networks; half as wide for the network of the question."""
    heads: int = 2
    """Number of networks whose mean is each network of the gate."""
    epochs: int = 8
    """Epochs over the first passes; three quarters as many over later ones."""
    question_epochs: int = 30
    """Epochs over the questions."""
    batch: int = 64
    """Passes per batch."""
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    probability: float = 0.125
    """Weight of the cross-entropy of each block, relative to that of the relevant blocks in a softmax over the list."""
    plain: float = 1.0
    """Added to the first-pass logit per standard deviation above the list, by vectors and by words."""
    weakened: float = 0.3
    """Share of first passes that are also used with one of the two searches weakened."""
    threshold: float = 0.2
    """Probability below which a block is not read."""
    more_threshold: float = 0.05
    """Probability that more passes help, from which the loop queries again."""
    refused: float = 0.03
    """Most answerable questions, as a share, for which `found` may be below its threshold; sets that threshold. The
    share is that of held-out questions or, with `leave_one_out`, of each group of sources that is left out."""
    leave_one_out: bool = False
    """Also train without each group of sources in turn and evaluate on it."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("threshold", "more_threshold", "refused", "weakened"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; it is a share from 0 to 1")
        for name in ("per_source", "passages", "steps", "heads", "epochs", "question_epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; at least 1")
        if self.hidden < 4:
            raise ValueError(f"hidden={self.hidden!r}; at least 4")
