"""The relations between entities of made-up worlds."""

from dataclasses import dataclass

from compmem_research.tasks.names import Kind, Split
from compmem_research.tasks.templates import Wording, openings, wording


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A relation from a subject of one kind to an object of another."""

    name: str
    subject: Kind
    object: Kind
    shared: bool
    """Several subjects may have the same object."""
    train: Wording
    eval: Wording

    def wording(self, split: Split) -> Wording:
        """Its wordings in this split."""
        return self.train if split == "train" else self.eval


OPENINGS: dict[Split, tuple[str, ...]] = {"train": openings("train"), "eval": openings("eval")}
"""Text before a statement; in half of the cases none."""

_RELATIONS: dict[str, tuple[Kind, Kind, bool]] = {
    "birthplace": ("person", "city", True),
    "home": ("person", "city", True),
    "spouse": ("person", "person", False),
    "father": ("person", "person", True),
    "teacher": ("person", "person", True),
    "employer": ("person", "company", True),
    "school": ("person", "school", True),
    "director": ("film", "person", True),
    "producer": ("film", "person", True),
    "star": ("film", "person", True),
    "author": ("book", "person", True),
    "singer": ("band", "person", True),
    "founder": ("company", "person", True),
    "headquarters": ("company", "city", True),
    "town": ("school", "city", True),
    "country": ("city", "country", True),
    "mayor": ("city", "person", False),
    "capital": ("country", "city", False),
    "president": ("country", "person", False),
}
"""Subject, object, and whether several subjects may have the same object."""

RELATIONS = tuple(
    Relation(
        name=name, subject=subject, object=object_, shared=shared,
        train=wording("train", name, subject, object_), eval=wording("eval", name, subject, object_),
    )
    for name, (subject, object_, shared) in _RELATIONS.items()
)  # fmt: skip
"""All relations; the object of one may be the subject of another, so they form chains."""
