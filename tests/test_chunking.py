import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compmem.ingest.chunking import split
from compmem.schema import Chunk, Document
from compmem.text.sentences import sentences
from compmem.text.truncation import CHARS_PER_TOKEN

_TOKEN = re.compile(r"\w{1,4}|[^\w\s]")


def count(texts):
    """A simple tokenizer: pieces of words, and two tokens around each text."""
    return [len(_TOKEN.findall(text)) + 2 for text in texts]


def cut(text, chunk_tokens=32, count=count):
    return list(
        split(Document(text=text, id="d", title="T", metadata={"a": 1}), chunk_tokens=chunk_tokens, count=count)
    )


PIECES = st.sampled_from(
    ["# Head\n", "Title\n=====\n\n", "A sentence here. ", "And more of it! ", "\n\n", "\n", " ", "- item\n",
     "1.2 Part\n",
     "def f(x):\n    return x\n", "class Foo(Bar):\n", "```\n# code\n```\n", "「行こう。」と言った。",
     "你好。", "z. B. ", "Dr. ", "3.14 ", "x" * 80, "\r\n", "\t", "\x00", "\u2028", "e\u0301",
     "\U0001f469\u200d\U0001f467", '"', "...", "a" * 700, " " * 700]
)  # fmt: skip
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=60).map("".join)


@given(text=TEXTS, chunk_tokens=st.integers(16, 80))
@settings(max_examples=150, deadline=None)
def test_chunks_cover_the_text_within_the_limit(text, chunk_tokens):
    chunks = cut(text, chunk_tokens)
    assert "".join(c.text for c in chunks) == (text if text.strip() else "")
    for number, chunk in enumerate(chunks):
        assert chunk.ordinal == number
        assert chunk.document_id == "d"
        assert chunk.text == text[chunk.start : chunk.end]
        assert count([chunk.text])[0] <= chunk_tokens
        assert len(chunk.text) <= chunk_tokens * CHARS_PER_TOKEN


def test_a_heading_that_goes_to_the_next_chunk_does_not_make_it_too_long():
    blank = " " * 700
    chunks = cut(f"A sentence here. # Head\n# Head\n{blank}\n\n# Head\n{blank}", 48)
    assert max(len(c.text) for c in chunks) <= 48 * CHARS_PER_TOKEN


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_sentences_hold_everything_but_blanks(text):
    at = 0
    for start, end in sentences(text):
        assert at <= start < end <= len(text)
        assert not text[at:start].strip()
        assert text[start:end] == text[start:end].strip()
        at = end
    assert not text[at:].strip()


@pytest.mark.parametrize("text", ["", " ", "\n\n \t"])
def test_blank_text_has_no_chunks(text):
    assert cut(text) == []


def test_given_chunks_keep_their_borders(caplog):
    caplog.set_level("INFO")
    given = [Chunk(text="One. Two.", headings=("H",), metadata={"b": 2}), "", "word " * 50]
    chunks = list(split(Document(chunks=given, id="d", title="T", metadata={"a": 1}), chunk_tokens=32, count=count))
    assert [c.text for c in chunks] == ["One. Two.", "word " * 50]
    assert [(c.ordinal, c.start, c.title) for c in chunks] == [(0, 0, "T"), (1, 9, "T")]
    assert chunks[0].headings == ("H",)
    assert chunks[0].metadata == {"a": 1, "b": 2}
    assert chunks[0].sentences == ((0, 4), (5, 9))
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "'d#1'" in caplog.text


SENTENCES = {
    "english": [
        "Dr. Smith lives in the U.S. today.", "He works at 3.5 p.m. daily, e.g. in Fig. 3.", "John F. Kennedy won.",
        '"What is it?" he asked.', "U.S. Army units came.", "It rose by 1.5 percent.[1]", "Really?!", "Yes.",
    ],
    "german": [
        "Am 3. Oktober feiern wir z. B. Die Einheit.", "Der 2. Weltkrieg endete 1945.", "Danach kam Dr. Adenauer.",
        "Das kostet 1.000,50 Euro.", "Im 19. Jahrhundert war es anders, d. h. Ärmer.",
    ],
    "korean": ["그는 서울에 갔다.", "3.1 운동은 1919년에 일어났다.", "정말?", '"네."', "그가 말했다.",
               "2024. 3. 1. 시작했다."],
}  # fmt: skip


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_of_a_language(language):
    text = " ".join(SENTENCES[language])
    assert [text[a:b] for a, b in sentences(text)] == SENTENCES[language]


@pytest.mark.parametrize(
    "parts",
    [
        ["「行こう。早く。」と彼は言った。", "雨が降る。", "彼女は「はい。」と答えた！", "そう？"],
        ["你好。", "他说：“我们走吧！”", "真的？", "数字是3.14。"],
        ["갔다.", "왔다!", "봤다."],
    ],
)
def test_sentences_without_spaces(parts):
    text = "".join(parts)
    assert [text[a:b] for a, b in sentences(text)] == parts


def test_lines_that_stand_for_themselves():
    text = "# Title\nWrapped\nprose. More.\n- item one\n  goes on\n- item two\n1. first\n2. A second\n\n"
    text += ">>> f(x)\nx = 1\ny = 2\n| a | b |\n"
    assert [text[a:b] for a, b in sentences(text)] == [
        "# Title", "Wrapped\nprose.", "More.", "- item one\n  goes on", "- item two", "1. first", "2. A second",
        ">>> f(x)", "x = 1", "y = 2", "| a | b |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "parts",
    [
        ["2. Project Heron", "Ines will lead Project Heron.", "The budget is EUR 240,000."],
        ["Invoice 2024-118", "Nordtech AB, Malmo", "3 units", "Payment is due within 45 days."],
        ["Payment", "10 days after delivery, unless\nthe order names another date."],
        ["The prices are those of\nNordtech AB in the year 2024 alone."],
        ["The prices are those that we found\nin the lists of the year 2024,\nMalmo and Lund."],
        ["The harbour was rented by the\nAcme Company for thirty years."],
        ["    The harbour is\n    Acme's, as was said."],
        ["a short line\nwithout a capital after it, which is prose."],
    ],
)
def test_a_short_line_without_a_mark_at_its_end_stands_for_itself(parts):
    text = "\n".join(parts).replace("Heron.\nThe", "Heron. The")
    assert [text[a:b] for a, b in sentences(text)] == [part.strip() for part in parts]


@pytest.mark.parametrize(
    "lines",
    [
        ["How many days depends on the office.", "Ghent: two days a week", "Leeds: three days a week"],
        ["The limits for a night, with breakfast:", "Ghent: 140 euros", "Leeds: 130 euros"],
        ["Article,Warehouse,In stock", "S1,Ghent,1240", '"Bracket, small",Graz,86'],
        ["a;b;c", "1;2;3"],
        ["Article,Warehouse,Note", 'S1,Ghent,"Sold out. Ask again."', "S2,Graz,New."],
        ["| Article | Note |", "| S1 | Sold out. Ask again. |"],
        ["\t\tThis is wrapped\n\t\tand indented."],
        ["It was seen before [1,2,5] in many\nothers [3,4,7] too, which is a lot."],
        ["a\tb\tc", "1\t2\t3"],
        ["note: a value that\ngoes on in the next line", "site: Basel"],
        ["It cost 1,240 euros and then\n3,500,000 more, as was said: much\nNote that it ends: here."],
    ],
)
def test_rows_of_values_and_labelled_lines_stand_for_themselves(lines):
    text = "\n".join(lines)
    assert [text[a:b] for a, b in sentences(text)] == [line.strip() for line in lines]


@pytest.mark.parametrize(
    "parts",
    [
        ["It was changed by Colonel (ret.) Ewan Strand.", "He left (in May.)", "She came."],
        ["Article 5. Subletting needs consent.", "§ 2.1. It ends in May.", "It is Article 5.", "He read it."],
        ["## 1. Office move", "The move is in May."],
    ],
)
def test_numbers_of_articles_and_short_words_in_brackets_end_no_sentence(parts):
    text = "\n".join(parts) if parts[0].startswith("#") else " ".join(parts)
    assert [text[a:b] for a, b in sentences(text)] == parts


def paragraph(words, name="w"):
    return " ".join([name] * (words - 1)) + " end.\n\n"


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("| Article | In stock |\n| --- | --- |\n", "| A-{0} | {0}7 |\n"),
        ("Article,Place,In stock\n", "A-{0},Ghent,{0}7\n"),
    ],
)
@pytest.mark.parametrize("before", ["", "This is what we have.\n", "# Stock\n\n"])
def test_a_chunk_that_begins_inside_a_table_has_its_head_as_the_last_heading(before, head, row):
    text = f"{before}{head}{''.join(row.format(n) for n in range(60))}\nNothing else.\n" + "It is so. " * 60
    first, *others = cut(text, chunk_tokens=40)
    inside = [chunk for chunk in others if chunk.text.startswith(row[:2])]
    assert inside
    assert all(chunk.headings == (*first.headings, head.split("\n")[0]) for chunk in inside)
    assert all(chunk.headings == first.headings for chunk in others if chunk.text.startswith("It is so."))
    assert "".join(chunk.text for chunk in (first, *others)) == text


@pytest.mark.parametrize("row", ['{{"id": {0},"name":"x","place":"y"}}\n', "{0},Ghent,x\n", "A-{0},Ghent,x\n"])
def test_rows_without_a_head_have_none(row):
    chunks = cut("".join(row.format(n) for n in range(60)) + "no,number,here\n" * 30, chunk_tokens=40)
    assert len(chunks) > 2
    assert not any(chunk.headings for chunk in chunks)


def test_chunks_end_with_paragraphs_then_sentences():
    text = paragraph(20, "a") + paragraph(20, "b") + "One two three four. " * 20
    assert [c.text for c in cut(text, 32)][:2] == [paragraph(20, "a"), paragraph(20, "b")]
    assert all(c.text.rstrip().endswith(".") for c in cut(text, 32))


def test_a_heading_begins_a_chunk_once_the_last_is_half_full():
    text = "# A\n\n" + paragraph(20) + "## B\n\n" + paragraph(5) + "## C\n\n" + paragraph(15)
    chunks = cut(text, 40)
    assert [c.text.split("\n")[0] for c in chunks] == ["# A", "## B"]
    assert [c.headings for c in chunks] == [("A",), ("A", "B")]


def test_a_heading_is_not_left_at_the_end():
    text = paragraph(14) + "# B\n\n" + paragraph(20)
    assert [c.text.startswith("# B") for c in cut(text, 32)] == [False, True]


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("# A #\n## B\ntext", ("A", "B")),
        ("## A\n### B\n## C\ntext", ("C",)),
        ("Title\n=====\n\nPart\n----\n\ntext", ("Title", "Part")),
        ("=====\nTitle\n=====\n\nPart\n~~~~\n\ntext", ("Title", "Part")),
        ("2 Means\n\n2.1 Ways of going\n\ntext", ("Means", "Ways of going")),
        ("class Foo(Bar):\n\n    def run(self) -> None:\n        pass", ("Foo", "run")),
        ("```\n# no heading\n```\n", ()),
        ("#hashtag\n\n2.1 is a number.\n\nclass action suits\n", ()),
        ("a line\n1.2 Not alone\n", ()),
    ],
)
def test_headings(text, headings):
    assert cut(text, 64)[0].headings == headings


@pytest.mark.parametrize("code", [
    "````\n```\n# none\n```\n# none\n````", "```\n~~~\n# none\n```", "~~~ a\n~~~ b\n# none\n~~~~ ",
    "```code```", "```\ncode\n\n```\nno\n```\ncode\n```",
])  # fmt: skip
def test_a_block_of_code_ends_with_the_marks_that_it_begins_with(code):
    assert cut(f"{code}\n\n## A\n\n{paragraph(40)}")[-1].headings == ("A",)


def test_a_chunk_keeps_the_innermost_headings():
    classes = "".join(f"{' ' * depth}class N{depth}:\n\n" for depth in range(60))
    chunks = cut(classes + paragraph(400), 64)
    assert chunks[-1].headings == tuple(f"N{depth}" for depth in range(52, 60))
    assert max(len(chunk.headings) for chunk in chunks) == 8


def test_each_piece_is_counted_once_and_in_batches():
    seen: list[str] = []
    calls = 0

    def counting(texts):
        nonlocal calls
        calls += 1
        seen.extend(texts)
        return count(texts)

    line = " ".join(f"word{i}" for i in range(60_000))
    chunks = cut(line, 64, counting)
    assert "".join(c.text for c in chunks) == line
    assert len(seen) == len(set(seen))
    assert calls < 3 * len(line) / 65_536 + 3


def test_words_are_not_cut_where_there_are_blanks():
    chunks = cut("supercalifragilistic " * 100, 32)
    assert len(chunks) > 1
    assert all(c.text.endswith("supercalifragilistic ") for c in chunks)


def test_counter_whose_whole_is_more_than_its_parts():
    def squares(texts):
        return [(len(text.split()) ** 2) // 4 for text in texts]

    text = "one two. " * 200
    chunks = cut(text, 16, squares)
    assert "".join(c.text for c in chunks) == text
    assert all(n <= 16 for n in squares([c.text for c in chunks]))


def test_given_spans_are_checked():
    with pytest.raises(ValueError, match=r"sentence span \(0, 9\) is out of order or outside a chunk of 4"):
        list(split(Document(chunks=[Chunk(text="Abc.", sentences=((0, 9),))]), chunk_tokens=32, count=count))
