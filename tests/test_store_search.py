"""Lexical search and filters of the store."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compmem.store import FolderStore
from compmem.text.tokenize import content_terms, name, possible_names
from tests.store_entries import CONFIG, entry


@pytest.fixture
def store(tmp_path: Path):
    with FolderStore.create(tmp_path / "a.mem", config=CONFIG, vectors="int8") as made:
        yield made


# Lexical index and names


def test_lexical_search_in_several_scripts(store: FolderStore):
    texts = {
        "en": "The insurances were paid by tenants.",
        "de": "Die Größe der Straße beträgt 12 Meter.",
        "ko": "서울은 대한민국의 수도이다.",
        "ja": "東京都は日本の首都です。",
        "zh": "北京是中国的首都。",
    }
    store.add([entry(language, [text], title=language.upper()) for language, text in texts.items()])

    def best(query: str) -> list[str]:
        with store.snapshot() as view:
            return [
                view.chunks([n])[0].document_id for n, _ in view.lexical_index().bm25([content_terms(query)], 10)[0]
            ]

    assert best("insurance tenant") == ["en"]
    assert best("groesse strasse")[:1] == ["de"]
    assert best("grosse")[:1] == ["de"]
    assert best("대한민국")[:1] == ["ko"]
    assert best("東京")[:1] == ["ja"]
    assert best("中国的首都")[:1] == ["zh"]
    assert best("nothing") == []


def test_lexical_ranks_limits_and_weighs_titles(store: FolderStore):
    store.add(
        [
            entry("body", ["Saturn and other words, filler filler filler filler."]),
            entry("title", ["Some other words, filler filler filler filler filler."], title="Saturn"),
            *(entry(f"x{i}", ["Other words, filler."], seed=i) for i in range(20)),
        ]
    )
    with store.snapshot() as view:
        found = view.lexical_index().bm25([["saturn", "saturn"]], 10)[0]
        assert [view.chunks([n])[0].document_id for n, _ in found] == ["title", "body"]
        assert found[0][1] > found[1][1] > 0
        assert len(view.lexical_index().bm25([["filler"]], 3)[0]) == 3
        assert view.lexical_index().bm25([["filler"]], 0)[0] == []
        assert view.lexical_index().bm25([[]], 3)[0] == []
        assert [n for n, _ in view.lexical_index(np.array([5, 7])).bm25([["filler", "saturn"]], 9)[0]] == [5, 7]
        assert view.lexical_index(np.array([], np.int64)).bm25([["filler"]], 9)[0] == []
        assert view.lexical_index().document_frequency(["filler", "saturn", "no"]) == {
            "filler": 22,
            "saturn": 2,
            "no": 0,
        }


@pytest.mark.parametrize("term", ['"', '" OR "', "a*", "NEAR(a b)", "title:x", "-", "\0", "\ud800", "", "x" * 100_000])
def test_terms_are_never_query_syntax(store: FolderStore, term: str):
    store.add([entry("d", ["a b c NEAR title x"])])
    with store.snapshot() as view:
        assert all(n == 1 for n, _ in view.lexical_index().bm25([[term, "near"]], 5)[0])
        assert view.lexical_index().bm25([["near"]], 5)[0]
        view.lexical_index().phrases([[term]], 5)
        view.lexical_index().blocks_by_name([term])


def test_phrases(store: FolderStore):
    store.add([entry("d", ["The old house stood. ", "A house, old and grey. ", "Old houses."])])
    with store.snapshot() as view:
        assert view.lexical_index().phrases([["old", "house"]], 5)[0] == [1, 3]
        assert view.lexical_index().phrases([["old", "house"]], 1)[0] == [1]
        assert view.lexical_index(np.array([2, 3])).phrases([["old", "house"]], 5)[0] == [3]
        assert view.lexical_index().phrases([[]], 5)[0] == []


def test_names(store: FolderStore):
    store.add(
        [
            entry("a", ["class json.Decoder is here.\n", "x"], title="Json (module)"),
            entry("b", ["“Premises” means the house."], title="Lease"),
            entry("c", [f"Part {i}. " for i in range(100)], title="Long"),
        ]
    )
    with store.snapshot() as view:
        asked = ["json module", "json", "premises", "lease", "part 1", "json decoder", "nothing", name("LEASE")]
        found = view.lexical_index().blocks_by_name(asked)
        assert found["json module"] == found["json"] == [(1, "title"), (2, "title")]
        assert found["premises"] == [(3, "term")]
        assert found["lease"] == [(3, "title")]
        assert found["json decoder"] == [(1, "term")]
        assert (2, "heading") in found["part 1"]
        assert "nothing" not in found
        assert len(view.lexical_index().blocks_by_name(["long"], per_name=7)["long"]) == 7
        asked = possible_names("what does the lease say of the premises?")
        assert view.lexical_index().blocks_by_name(asked).keys() == {"lease", "premises"}
        strange = [
            "\0",
            "\ud800",
            "",
            "'",
            '"',
            "\\",
            "]",
            "null",
            "1",
            "lease\0",
            "x" * 100_000,
            *map(str, range(10_000)),
        ]
        assert view.lexical_index().blocks_by_name(["long", *strange, "lease"], 1) == {
            "long": [(4, "title")],
            "lease": [(3, "title")],
        }
    store.delete(["b"])
    with store.snapshot() as view:
        assert view.lexical_index().blocks_by_name(["premises", "lease"]) == {}
    assert store.verify() == []


def test_names_are_compared_as_text_whatever_their_characters(store: FolderStore):
    titles = ["007", "\U00020000\u0301x", "null", "1e3", "Straße 東京"]
    store.add([entry(f"d{i}", ["A text."], title=title, seed=i) for i, title in enumerate(titles)])
    with store.snapshot() as view:
        asked = [name(title) for title in reversed(titles)]
        assert list(view.lexical_index().blocks_by_name(asked)) == asked
        assert view.lexical_index().blocks_by_name(["7", "1000", "0"]) == {}


def test_another_cut_of_terms_is_indexed_anew(store: FolderStore):
    store.add([entry("d", ["Alpha one."]), entry("e", ["Beta two."])])
    with closing(sqlite3.connect(store.path / "manifest.sqlite")) as raw, raw:
        raw.execute("UPDATE manifest SET value = '\"of another version\"' WHERE name = 'terms'")
        raw.execute("INSERT INTO lexical(lexical, rowid, title, body) VALUES ('delete', 1, '', 'part 0 alpha one')")
        raw.execute("INSERT INTO lexical(rowid, title, body) VALUES (1, '', 'teil 0 alpha eins')")
    store.delete(["e"])
    with store.snapshot() as view:
        assert view.lexical_index().bm25([["one"]], 5)[0][0][0] == 1
        assert view.lexical_index().bm25([["eins"]], 5)[0] == []
    assert store.verify() == []


# Filters

RECORDS: list[dict[str, Any]] = [
    {},
    {"year": 2024, "lang": "en", "tags": ["a", "b"], "ok": True},
    {"year": 2020.5, "lang": "DE", "tags": [], "ok": False},
    {"year": "2024", "lang": "", "tags": ["b", 1, None], "ok": 1},
    {"year": None, "lang": "Straße", "tags": "ab", "and": 1, "or": [1], "not": "x"},
    {"document_id": "own", "title": 7, 'odd "key" \\ $.x': 1, "": "empty", "nested": {"a": 1}},
]


@pytest.fixture(scope="module")
def filtered():
    with FolderStore.create(None, config={}, vectors="int8") as store:
        store.add(
            [entry(f"r{i}", ["Text. "], title=f"T{i}", dim=None, metadata=record) for i, record in enumerate(RECORDS)]
        )
        yield store


def admitted(store: FolderStore, wanted: Any) -> list[int]:
    with store.snapshot() as view:
        numbers = (view.select(wanted) - 1).tolist()
        assert [int(d.id[1:]) for d in view.documents(wanted)] == numbers
        return numbers


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ([], [0, 1, 2, 3, 4, 5]),
        ({"year": 2024}, [1]),
        ({"year": {"==": "2024"}}, [3]),
        ({"year": None}, [0, 4, 5]),
        ({"year": {"!=": 2024}}, [0, 2, 3, 4, 5]),
        ({"year": {">=": 2020, "<": 2024}}, [2]),
        ({"year": {">": "2"}}, [3]),
        ({"ok": True}, [1]),
        ({"ok": 1}, [3]),
        ({"ok": {"in": [False, None]}}, [0, 2, 4, 5]),
        ({"lang": {"not in": ["en", ""]}}, [0, 2, 4, 5]),
        ({"tags": {"any": ["a", 1]}}, [1, 3]),
        ({"tags": {"all": ["a", "b"]}}, [1]),
        ({"tags": {"all": []}}, [1, 2, 3]),
        ({"tags": {"any": []}}, []),
        ({"tags": {"contains": "b"}}, [1, 3, 4]),
        ({"tags": {"contains": None}}, [3]),
        ({"lang": {"text match": "d"}}, [2]),
        ({"lang": {"text match": "STRASSE"}}, [4]),
        ({"tags": {"is empty": True}}, [0, 2, 5]),
        ({"lang": {"is empty": False}}, [1, 2, 4]),
        ([{"year": {"is empty": False}}, {"tags": {"is empty": False}}], [1, 3]),
        ({"or": [{"year": 2024}, {"lang": "DE"}]}, [1, 2]),
        ({"not": {"or": [{"year": 2024}, {"lang": "DE"}]}}, [0, 3, 4, 5]),
        ({"and": [{"not": {"ok": True}}, {"not": {"not": {"lang": "DE"}}}]}, [2]),
        ({"and": {"==": 1}}, [4]),
        ({"or": {"any": [1]}}, [4]),
        ({"not": {"==": "x"}}, [4]),
        ({"document_id": {"in": ["r2", "r5", "own"]}}, [2, 5]),
        ({"document_id": {"!=": "r2"}}, [0, 1, 3, 4, 5]),
        ({"title": "T3"}, [3]),
        ({"title": 7}, [5]),
        ({'odd "key" \\ $.x': 1}, [5]),
        ({"": "empty"}, [5]),
        ({"x' OR 1=1 --": 1}, []),
        ({"lang": {"in": ["x"] * 5000 + ["en"]}}, [1]),
        ({"or": [{"year": i} for i in range(1900, 2100)]}, [1]),
    ],
)
def test_filters(filtered: FolderStore, wanted: Any, expected: list[int]):
    assert admitted(filtered, wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"year": {"=~": 1}}, r"unknown filter operator '=~' for 'year'; there are ==, !=, >"),
        ({"year": {"==": 1, "near": 2}}, "unknown filter operator 'near'"),
        ({"year": {}}, "'year' has no operator; there are =="),
        ({"year": [1, 2]}, r"'year': '==' takes a string, a number, true, false or null, not \[1, 2\]"),
        ({"year": {">": True}}, "'>' takes a number or a string, not True"),
        ({"year": {">": None}}, "'>' takes a number or a string"),
        ({"year": {"<": float("nan")}}, "nan is not a JSON number"),
        ({"year": {"in": "abc"}}, "'in' takes a list, not 'abc'"),
        ({"year": {"any": 1}}, "'any' takes a list"),
        ({"year": {"all": [[1]]}}, "'all' takes a string, a number"),
        ({"year": {"text match": 1}}, "'text match' takes a string"),
        ({"year": {"is empty": 1}}, "'is empty' takes true or false"),
        ({"year": "a\0b"}, "NUL"),
        ({"and": {"x": 1}}, "'and' takes a list of filters"),
        ({"or": []}, "'or' takes a list of filters"),
        ({"not": 3}, "a filter is a mapping"),
        ({1: 2}, "filter key 1 must be a string"),
        ("year = 2024", "a filter is a mapping"),
    ],
)
def test_bad_filters(filtered: FolderStore, wanted: Any, message: str):
    with pytest.raises(ValueError, match=message):
        admitted(filtered, wanted)


def test_filters_may_be_nested_but_not_for_ever(filtered: FolderStore):
    def nested(levels: int) -> Any:
        wanted: Any = {"or": [{"year": i} for i in range(500)] + [{"year": {"all": ["x"] * 500}}, {"year": 2024}]}
        for _ in range(levels):
            wanted = {"not": {"and": [wanted, {}]}}
        return wanted

    assert admitted(filtered, nested(2)) == [1]
    assert admitted(filtered, nested(15)) == [0, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="32 levels deep"):
        admitted(filtered, nested(20))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -2.5]),
    st.sampled_from(["", "a", "A", "ab", "é", "1"]),
)
METADATA = st.dictionaries(
    st.sampled_from(["a", "b", "title", "k.e'y\""]), st.one_of(VALUES, st.lists(VALUES, max_size=3)), max_size=4
)
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["==", "!=", "contains"]), VALUES),
    st.tuples(
        st.sampled_from([">", ">=", "<", "<="]), VALUES.filter(lambda v: v is not None and not isinstance(v, bool))
    ),
    st.tuples(st.sampled_from(["in", "not in", "any", "all"]), st.lists(VALUES, max_size=3)),
    st.tuples(st.just("text match"), st.sampled_from(["", "a", "AB", "É"])),
    st.tuples(st.just("is empty"), st.booleans()),
)
FILTERS = st.recursive(
    st.dictionaries(
        st.sampled_from(["a", "b", "title", "document_id", "k.e'y\""]),
        st.lists(LEAVES, min_size=1, max_size=2).map(dict),
        min_size=1,
        max_size=2,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.builds(
            lambda word, parts: {word: parts}, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)
        ),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=6,
)


def holds(wanted: Any, data: dict[str, Any]) -> bool:
    """The meaning of a filter, computed naively."""
    if isinstance(wanted, list):
        return all(holds(part, data) for part in wanted)
    for key, value in wanted.items():
        if key in ("and", "or"):
            ok = (all if key == "and" else any)(holds(part, data) for part in value)
        else:
            ok = not holds(value, data) if key == "not" else all(leaf(o, data.get(key), v) for o, v in value.items())
        if not ok:
            return False
    return True


def leaf(operator: str, have: Any, v: Any) -> bool:
    def same(x: Any, y: Any) -> bool:
        return isinstance(x, bool) == isinstance(y, bool) and x == y

    def number(x: Any) -> bool:
        return isinstance(x, int | float) and not isinstance(x, bool)

    comparable = (number(have) and number(v)) or (isinstance(have, str) and isinstance(v, str))
    listed = have if isinstance(have, list) else None
    return {
        "==": lambda: not isinstance(have, list) and same(have, v),
        "!=": lambda: not leaf("==", have, v),
        ">": lambda: comparable and have > v,
        ">=": lambda: comparable and have >= v,
        "<": lambda: comparable and have < v,
        "<=": lambda: comparable and have <= v,
        "in": lambda: any(leaf("==", have, x) for x in v),
        "not in": lambda: not leaf("in", have, v),
        "any": lambda: listed is not None and any(same(x, y) for x in listed for y in v),
        "all": lambda: listed is not None and all(any(same(x, y) for x in listed) for y in v),
        "contains": lambda: leaf("any", have, [v]) or (isinstance(have, str) and isinstance(v, str) and v in have),
        "text match": lambda: isinstance(have, str) and v.casefold() in have.casefold(),
        "is empty": lambda: (have in (None, "") or have == []) == v,
    }[operator]()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(METADATA, min_size=1, max_size=6), st.lists(FILTERS, min_size=1, max_size=12))
def test_filters_mean_what_python_means(records: list[dict[str, Any]], filters: list[Any]):
    with FolderStore.create(None, config={}, vectors="int8") as store:
        store.add([entry(f"r{i}", ["x"], title=f"T{i}", dim=None, metadata=record) for i, record in enumerate(records)])
        for wanted in filters:
            own = [{"document_id": f"r{i}", "title": f"T{i}", **record} for i, record in enumerate(records)]
            assert admitted(store, wanted) == [i for i, data in enumerate(own) if holds(wanted, data)], wanted
