"""The training sources of the gate, each with the group that is left out when it is evaluated."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from compmem_research.training.dense_gate import pages, sets, synthetic
from compmem_research.training.dense_gate.collection import Collection
from compmem_research.training.dense_gate.settings import DenseGateTraining

SINGLE = {
    "squadshifts_new_wiki": "new_wiki", "squadshifts_amazon_reviews": "amazon", "squadshifts_reddit": "reddit",
    "fairytaleqa": "fairytaleqa", "nq_qed": "nq_qed",
}  # fmt: skip
"""Sets of single questions and their groups."""

LONG = "fairytaleqa"
"""The set whose texts are also joined to long passages."""
_PER_NODE = 5


@dataclass(frozen=True, slots=True)
class Source:
    """Collections of one kind."""

    name: str
    group: str
    """Sources of one group come from the same texts or ask in the same way."""
    collections: Callable[[], Iterator[Collection]]
    files: tuple[Path, ...] = ()
    """Their data files."""
    also_of: tuple[str, ...] = ()
    """Further groups whose texts they use: if one of them is left out, so is this source."""
    versions: tuple[str, ...] = ()
    """Versions of installed software whose texts they use."""

    def touches(self, group: str) -> bool:
        """Whether it contains data of this group."""
        return group == self.group or group in self.also_of


def sources(settings: DenseGateTraining) -> list[Source]:
    """The sources whose files are in the settings."""
    found: list[Source] = []
    most = settings.per_source

    def add(name: str, group: str, make: Callable[[], Iterator[Collection]], *files: Path) -> None:
        found.append(Source(name, group, make, files))

    if file := settings.singlehop:
        for dataset, group in SINGLE.items():
            add(dataset, group, partial(sets.single, file, dataset, settings.passages, most), file)
            add(f"{dataset}_tiny", group, partial(sets.tiny_single, file, dataset, max(most // 5, 1)), file)
        long = partial(sets.single, file, LONG, 3 * settings.passages // 4, most // 2, per_node=_PER_NODE)
        add(f"{LONG}_nodes", SINGLE[LONG], long, file)
    if file := settings.pubmedqa:
        add("pubmedqa", "pubmedqa", partial(sets.abstracts, file, most), file)
        add("pubmedqa_parts", "pubmedqa", partial(sets.abstracts_in_parts, file, most), file)
        add("pubmedqa_titled", "pubmedqa", partial(sets.abstracts_titled, file, most), file)
    if file := settings.clapnq:
        add("clapnq", "clapnq", partial(sets.paired, file, most), file)
    if file := settings.tatqa:
        add("tatqa", "tatqa", partial(sets.reports, file, most, whole=False), file)
        add("tatqa_pages", "tatqa", partial(sets.reports, file, most, whole=True), file)
    distractors, asked, filling = _pages(settings)
    found += _of_pages(settings, asked) if asked else []
    if file := settings.multihop:
        several = partial(sets.several_hops, file, distractors, most)
        add("multihop", "multihop", several, file, *filter(None, [distractors]))
        add("small", "multihop", partial(sets.small_indexes, file, most), file)
        add("tiny", "multihop", partial(sets.tiny_indexes, file, most), file)
        long_passages = partial(sets.long_passages, file, distractors, most // 2)
        add("long", "multihop", long_passages, file, *filter(None, [distractors]))
    if settings.singlehop and distractors:
        made = partial(synthetic.composed, settings.singlehop, distractors, most)
        of = tuple(SINGLE[name] for name in synthetic.COMPOSED_OF)
        found.append(Source("composed", "multihop", made, (settings.singlehop, distractors), of))
    if settings.docstrings:
        versions = (platform.python_version(), np.__version__)
        found.append(Source("docstrings", "docstrings", partial(pages.docstrings, most), versions=versions))
    if settings.synthetic:
        files = tuple(filter(None, [filling]))
        add("ruler", "ruler", partial(synthetic.needles, filling, 2 * most), *files)
        add("worlds", "worlds", partial(synthetic.worlds, filling, max(most // 5, 1)), *files)
    return found


def _of_pages(settings: DenseGateTraining, file: Path) -> list[Source]:
    """Sources from pages without questions; each uses its own pages."""
    count, most = max(settings.passages // 4, 1), settings.per_source
    made: list[tuple[str, str, Callable[[], Iterator[Collection]]]] = [
        ("wiki_titled", "wiki", partial(pages.sections, file, 0, count, most, titled=True)),
        ("wiki_plain", "wiki", partial(pages.sections, file, count, count, most, titled=False)),
        ("topics", "topics", partial(pages.topics, file, 2 * count, 2 * count, most)),
        ("bodies", "topics", partial(pages.bodies, file, 4 * count, count, most, titled=False)),
        ("bodies_titled", "topics", partial(pages.bodies, file, 5 * count, count, most, titled=True)),
    ]
    return [Source(name, group, make, (file,)) for name, group, make in made]


def _pages(settings: DenseGateTraining) -> tuple[Path | None, Path | None, Path | None]:
    """The files of pages for distractors, for queries, and for synthetic contexts."""
    if not settings.pages:
        return None, None, None
    first, second, third = (settings.pages[n % len(settings.pages)] for n in range(3))
    return first, second, third
