"""The measurement that compares an index in shards with one folder."""

from dataclasses import replace

from compmem import Document, IndexConfig, MemoryIndex
from compmem_research.bench.sharded import compared, divided, find, pages
from tests.hashing import HashEncoder

TEXTS = ["Acme rents the Hall.", "The Hall is insured by Borel.", "Acme rents the Hall.", "Borel is a city."]


def test_a_copy_in_shards_is_the_same_and_a_difference_is_counted(tmp_path):
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as whole:
        whole.add([Document(id=str(n), title=f"Page {n}", text=text) for n, text in enumerate(TEXTS)])
        with divided(whole, tmp_path / "s", 3) as parted:
            assert {d.id for d in parted.documents()} == {"0", "1", "2", "3"}
            assert parted.verify() == []
            one, many = (find(index, "Who insures what Acme rents?") for index in (whole, parted))
    assert len(one.scores) == len(TEXTS)
    same = compared([(one, many)])
    assert all(
        same[name] == 1 for name in ("questions", "same_candidates", "same_order", "same_answer", "same_sources")
    )
    chunk = next(iter(one.scores))
    other = replace(many, answer="Nobody.", scores=dict(reversed((many.scores | {chunk: 9.0}).items())))
    apart = compared([(one, many), (one, other)])
    assert (apart["same_candidates"], apart["same_order"], apart["same_answer"]) == (2, 1, 1)
    assert apart["scores_within_0.0001"] == 1 and apart["largest_difference"] > 8
    assert len(list(pages({"sharded": [{"shards": 3, **same}]}))) == 3
