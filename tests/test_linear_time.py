"""No text makes a pattern or a parser take more than linear time."""

import contextlib
import importlib
import inspect
import pkgutil
import re
import time

import pytest
from llama_index.core.base.llms.types import ChatMessage

import compmem
import llama_index_compmem
from compmem.cli import formats, html_text, json_lines, mail, pdf_layout, record_text, text_decoding
from compmem.cli.answer_page import answer_page
from compmem.cli.answer_text import printable
from compmem.encoder.loading import load_encoder
from compmem.errors import CompMemError
from compmem.ingest import chunking
from compmem.readers import prompt_budget, replies
from compmem.readers.chat import ChatReader, estimate_tokens
from compmem.readers.outline import Outlines
from compmem.readers.quotation import quotation
from compmem.readers.quoting import quoted_sentences
from compmem.schema import Answer, Chunk, Document, Evidence, MemoryBlock, Usage, WorkingMemory
from compmem.store.columns import Column, moment
from compmem.text import escaping, tokenize
from compmem.text.codes import only_unknown_codes
from compmem.text.follow_up import standalone_question
from compmem.text.question_parts import question_parts
from compmem.text.sentences import sentences
from compmem.text.unicode import valid
from llama_index_compmem.condense_question import condense_by_rule
from tests.hashing import HashEncoder

UNITS = {
    "blanks": " ", "lines": "\n", "blank lines": " \n", "dots": ".", "marks": "!?", "letters": "a", "words": "a ",
    "initials": "A.b", "numbers": "1.", "open tags": "<a ", "closed tags": "</think>", "angles": "<", "spaced": "< ",
    "square": "[", "round": "(", "pairs": "a(b", "quotes": '"', "curly": "“", "corners": "「a", "fences": "```\n",
    "hashes": "#", "dashes": "---\n", "titles": "title:\n", "classes": "class a(", "defs": "def f( -> ",
    "entities": "&amp;", "zero width": "<\u200b", "Hangul": "가.", "Kanji": "漢", "doctypes": "<![",
    "underscores": "_", "backslashes": "\\", "braces": "{a", "pipes": "|", "heads": "a\n\n", "names": "Ab ",
    "bullets": "- a\n", "lists": "[1,", "columns": "a;", "block ends": "</block>", "dates": "2024-01-01T",
    "accents": "\u0301\u0316", "questions": "and who is ", "rows": "a,b,c\n", "fields": "a: b\n", "codes": "AB-1 ",
    "answers": "Ab c. And he is ",
}  # fmt: skip
EDGES = (("", ""), ("x", "y"), ("# ", "y"), ("---\ntitle:", ""), ("f()", "x\n"))
"""Texts before and after the units."""
SMALL, TIMES, MOST, ATTEMPTS = 600, 10, 15, 4


def made(name, length, attempt):
    """Texts of this kind; each attempt has different ones, which no cache knows."""
    body = UNITS[name] * (length // len(UNITS[name]) - attempt)
    return [f"{head}{body}{tail}" for head, tail in EDGES]


def seconds(run, texts):
    started = time.thread_time()
    for text in texts:
        run(text)
    return time.thread_time() - started


def grows_linearly(run, name, small=SMALL):
    """Whether ten times the text takes less than fifteen times the time, in the best of several attempts.

    Work that takes hardly longer than reading each character once is not compared.
    """
    short, long = 0.0, float("inf")
    for attempt in range(ATTEMPTS):
        few = made(name, small, attempt)
        long = min(long, seconds(run, made(name, small * TIMES, attempt)))
        if long > MOST * short:
            short = max(short, seconds(list, few), seconds(run, few))
        if long <= MOST * short:
            return True
    return False


def superlinear(run, small=SMALL):
    return [name for name in UNITS if not grows_linearly(run, name, small)]


def patterns():
    """Each compiled pattern of the product, with the way in which its module uses it."""
    for package in (compmem, llama_index_compmem):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            module = importlib.import_module(found.name)
            source = inspect.getsource(module)
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern) and re.search(rf"^{name}\b", source, re.MULTILINE):
                    anywhere = re.search(rf"\b{name}\.(?:finditer|findall|search|sub|split)\b", source)
                    yield pytest.param(value, bool(anywhere), id=f"{found.name}.{name}")


@pytest.mark.parametrize(("pattern", "anywhere"), patterns())
def test_every_pattern_is_linear(pattern, anywhere):
    def run(text):
        text = text if isinstance(pattern.pattern, str) else text.encode()
        if anywhere:
            pattern.sub(text[:0], text)
        else:
            pattern.match(text)

    assert superlinear(run) == []


@pytest.mark.parametrize("pattern", [r"\s+x", r"\.+!", r"<a\s*<.*>"])
def test_a_quadratic_pattern_is_seen(pattern):
    assert not all(grows_linearly(re.compile(pattern).search, name) for name in UNITS)


def streamed(stream):
    def run(text):
        made = stream()
        for at in range(0, len(text), 3):
            made.feed(text[at : at + 3])

    return run


def cut(text):
    list(chunking.split(Document(text=text), chunk_tokens=64, count=lambda texts: [len(t) // 4 for t in texts]))


def paged(text):
    nothing = {"found": True, "sources": (), "evidence": (), "steps": (), "stop_reason": "exhausted", "usage": Usage()}
    answer = Answer(question=text, text=text, working_memory=text, **nothing)
    printable(answer.text)
    answer_page(answer)


def asked(text):
    block = MemoryBlock(chunk=Chunk(text=text, title=text, headings=(text,), context=text))
    reader = ChatReader(lambda messages: text)
    with contextlib.suppress(CompMemError):
        reader.read(f"q {text}", WorkingMemory(text=text), [block])
        list(reader.write("q", WorkingMemory(text=text, blocks=(block,))))


def quoted(text):
    chunk = Chunk(text=text, sentences=tuple(sentences(text)))
    kept = [Evidence(text=text[a:b], chunk=chunk, start=a, end=b, score=0.5) for a, b in chunk.sentences[:9]]
    if kept:
        outlines = Outlines()
        list(quotation(quoted_sentences({"a": 1.0, "z": 1.0}, kept, outlines), outlines))


def quietly(read):
    def run(text):
        with contextlib.suppress(CompMemError, text_decoding.UnreadableError):
            read(text)

    return run


READERS = {
    "sentences": sentences,
    "chunks": cut,
    "names of a text": lambda text: tokenize.names_of("", [], text),
    "names of a title": lambda text: tokenize.names_of(text, [text], ""),
    "possible names": tokenize.possible_names,
    "capitalised names": tokenize.capitalised_names,
    "mentions": lambda text: tokenize.mentions(text, ["a a"]),
    "terms": tokenize.content_terms,
    "heading over": lambda text: tokenize.heading_over(text, len(text) // 2),
    "HTML": quietly(html_text.page_text),
    "PDF lines": lambda text: pdf_layout.pages_text(
        [[pdf_layout.Line(line, len(line) % 9, n, n) for n, line in enumerate(text.split("\n"))]] * 9
    ),
    "Markdown": lambda text: formats.parse("md", b"x" + text.encode(), "a"),
    "plain text": lambda text: formats.parse("txt", b"x" + text.encode(), "a"),
    "CSV": quietly(record_text.csv_text),
    "JSON": record_text.json_text,
    "JSON lines": quietly(lambda text: json_lines.line_document({text: text, "a": [text] * 9}, {})),
    "quotations of mail": lambda text: mail.without_quote_marks(f"> {text}".replace("\n", "\n> ")),
    "bytes": quietly(lambda text: text_decoding.decode(text.encode() + b"\xff", "a", html=True)),
    "reply": replies.parse_reply,
    "spoken": replies.without_thinking,
    "swallowed tag": replies.ends_untagged_thinking,
    "quoting": lambda text: escaping.unescaped(escaping.escaped(text)),
    "prompts": asked,
    "quoted sentences": quoted,
    "parts of prompts": lambda text: prompt_budget.split_into_prompts(
        [prompt_budget.PromptBlock("a", text, "b")], 60, estimate_tokens
    ),
    "part of a prompt": lambda text: prompt_budget.fit_into_prompt(
        [prompt_budget.PromptBlock("a", text, "b")], 60, {"a": 1.0}, estimate_tokens
    ),
    "surrogates": valid,
    "trace": paged,
    "text match": lambda text: Column([text, text + "z"]).mask("text match", text + "z"),
    "dates": moment,
    "names of a chat": lambda text: condense_by_rule([ChatMessage(text)], text),
    "question parts": question_parts,
    "follow-up": lambda text: standalone_question([{"role": "user", "content": text}] * 3, text[:4000]),
    "follow-up of an answer": lambda text: standalone_question([{"role": "assistant", "content": text}] * 2, "Is it?"),
    "codes": lambda text: only_unknown_codes(f"INC-250 {text}", [text]),
    "token estimate": lambda text: load_encoder(HashEncoder()).count_tokens([text]),
}
STREAMS = {
    "spoken": lambda: replies.ThinkingFilter(hold=False),
    "held": lambda: replies.ThinkingFilter(hold=True),
    "references": escaping.Unescaper,
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_text_is_linear(reader):
    assert superlinear(READERS[reader]) == []


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_is_linear(stream):
    assert superlinear(streamed(STREAMS[stream]), small=5 * SMALL) == []
