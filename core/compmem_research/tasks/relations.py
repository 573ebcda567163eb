"""The relations of made-up worlds: what a thing of one kind may be to a thing of another."""

from dataclasses import dataclass

from compmem_research.tasks.names import Kind, Split
from compmem_research.tasks.templates import Wording, openings, wording


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """What a subject of one kind may be to an object of another."""

    name: str
    subject: Kind
    object: Kind
    shared: bool
    """Several subjects may have one object."""
    train: Wording
    eval: Wording

    def wording(self, split: Split) -> Wording:
        """How it is put into words in this split."""
        return self.train if split == "train" else self.eval


OPENINGS: dict[Split, tuple[str, ...]] = {"train": openings("train"), "eval": openings("eval")}
"""What may precede a statement; "" as often as anything else together."""

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
"""Subject, object, and whether several subjects may share the object."""

RELATIONS = tuple(
    Relation(
        name=name, subject=subject, object=object_, shared=shared,
        train=wording("train", name, subject, object_), eval=wording("eval", name, subject, object_),
    )
    for name, (subject, object_, shared) in _RELATIONS.items()
)  # fmt: skip
"""All of them; a relation's object may be another's subject, so they make chains."""
