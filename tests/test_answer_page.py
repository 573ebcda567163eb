"""An answer as a page: whole, escaped, without control characters."""

import re
from html.parser import HTMLParser

import pytest

from compmem.cli.answer_page import answer_page
from compmem.cli.answer_text import cost_text, new_notes, printable
from compmem.schema import Answer, Chunk, Evidence, Recall, Step, Usage

FIRST = "Acme rents Mill House. It is old."
SECOND = "The owner of Mill House pays the insurance."
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=y>\x1b[31mred\x9b0m\u202ex\ud800"


def chunk(text, document_id, start=0, title="", headings=()):
    return Chunk(text=text, document_id=document_id, start=start, title=title, headings=headings)


def a_step(**values):
    defaults = {
        "number": 1, "recalls": (), "updated": True, "exit": False, "backtracked": False, "candidates": 1,
        "seconds": 0.0,
    }  # fmt: skip
    return Step(**{**defaults, **values})


def an_answer(extra=""):
    first = Recall(chunk=chunk(FIRST + extra, "lease-7", 100, "Lease" + extra, ("1 Parties",)), score=0.91, block=3)
    second = Recall(chunk=chunk(SECOND, "policy", 0), score=0.62, block=9)
    evidence = (
        Evidence(text=FIRST[:22], chunk=first.chunk, start=0, end=22, score=0.8),
        Evidence(text=SECOND, chunk=second.chunk, start=0, end=len(SECOND), score=0.7),
    )
    one = "Lease: Acme rents Mill House." + extra
    two = one + "\npolicy: " + SECOND
    steps = (
        a_step(recalls=(first,), working_memory=one, candidates=12, seconds=0.01),
        a_step(number=2, recalls=(second,), working_memory=two, exit=True, backtracked=True, seconds=0.02),
    )
    return Answer(
        question="Who pays the insurance of the building Acme rents?" + extra, text="The owner." + extra, found=True,
        sources=(first, second), evidence=evidence, steps=steps, working_memory=two,
        usage=Usage(steps=2, blocks_scored=13, blocks_read=2, seconds=0.03), stop_reason="exit_gate",
    )  # fmt: skip


def test_nothing_found_is_said():
    answer = Answer(
        question="q", text="Nothing.", found=False, sources=(), evidence=(), steps=(), working_memory="",
        usage=Usage(model_calls=2, prompt_tokens=10, completion_tokens=3, malformed_replies=1), stop_reason="exhausted",
    )  # fmt: skip
    assert cost_text(answer.usage) == (
        "0 steps, 0 blocks scored, 0 read, 2 model calls, 10 + 3 tokens, 1 malformed, 0.00 s"
    )
    page = answer_page(answer)
    assert 'class="answer none"' in page
    assert "Sources" not in page


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    VOID = frozenset({"meta"})

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_self_contained():
    page = Page(answer_page(an_answer()))
    text = " ".join(page.words)
    for part in (
        "Who pays the insurance", "The owner.", "Lease › 1 Parties", "characters 100-133", "gate 0.91", "Step 2",
        "12 candidates", "enough is known", "It is old.", "exit_gate",
    ):  # fmt: skip
        assert part in text
    assert page.tags.count("mark") == 2
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not {"href", "src", "style"} & {name for name, _ in page.attributes}
    assert "prefers-color-scheme: dark" in answer_page(an_answer())


def test_untrusted_text_stays_text():
    plain, hostile = answer_page(an_answer()), answer_page(an_answer(HOSTILE))
    assert Page(hostile).tags == Page(plain).tags
    assert {name for name, _ in Page(hostile).attributes} == {name for name, _ in Page(plain).attributes}
    assert "<script>alert(1)</script>" in " ".join(Page(hostile).words)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", hostile)
    hostile.encode("utf-8")


def test_overlapping_quotes_are_marked_once():
    source = Recall(chunk=chunk("abcdef", "d"), score=1.0, block=0)
    spans = [(0, 3), (2, 5), (4, 6)]
    evidence = tuple(Evidence(text="x", chunk=source.chunk, start=a, end=b, score=1.0) for a, b in spans)
    base = an_answer()
    answer = Answer(
        **{**{n: getattr(base, n) for n in Answer.__slots__}, "sources": (source,), "evidence": evidence, "steps": ()}
    )
    assert "<mark>abc</mark>d<mark>ef</mark>" in answer_page(answer)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "a", "a"),
        ("a", "a", ""),
        ("a", "a\nb\nc", "b\nc"),
        ("a\nb", "b\nc", "b\nc"),
        ("old notes", "all new", "all new"),
    ],
)
def test_what_a_step_gained(before, after, expected):
    step = a_step(working_memory=after)
    assert new_notes(step, before) == expected


def test_printable_keeps_lines_tabs_and_scripts():
    assert printable("a\tb\nc 東京 العربية") == "a\tb\nc 東京 العربية"
    assert printable("\x1b]0;x\x07\r") == "\ufffd]0;x\ufffd\ufffd"
