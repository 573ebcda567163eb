"""Collections from plain pages and docstrings without questions: keywords, sentences, topics, names."""

import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from compmem.text.tokenize import STOPWORDS, words
from compmem_research.tasks.multihop import read_lines
from compmem_research.training.dense_gate.collection import Collection, Query, passages, relevant_to
from compmem_research.training.dense_gate.styles import keywords

_TOPICS = (
    "what is known of {0} {1} and {2}", "{0} {1} of {2}", "how is {0} connected to {1} in {2}?", "work on {0} {1} {2}",
)  # fmt: skip
_REQUESTS = (
    "{}", "{}", "which studies have been made of {}", "describe {}", "facts about {}", "what effects do {} have .",
)  # fmt: skip
_HEADED = (
    "{heading} of {title}", "{title}: {heading}", "{title} {heading}", "what is known of {heading} in {title}",
    "{heading} {title}",
)  # fmt: skip
_PLAIN_HEADINGS = frozenset(("see also", "notes", "references", "external links", "sources", "gallery", "overview"))
_BODY = 8
"""Most paragraphs of one page."""
_TASKS = ("How can I {}", "{}", "a function to {}", "which function will {}")

MODULES = (
    "os os.path re json csv math statistics random itertools functools collections datetime calendar string textwrap "
    "pathlib shutil glob tempfile sqlite3 zlib gzip zipfile tarfile configparser hashlib hmac secrets io time argparse "
    "logging threading multiprocessing subprocess socket ssl select asyncio email html urllib.request urllib.parse "
    "http.client http.server ftplib smtplib uuid ipaddress decimal fractions heapq bisect array weakref types copy "
    "pprint enum contextlib abc inspect traceback ast dis typing unittest doctest numpy numpy.linalg numpy.fft "
    "numpy.random"
).split()
"""Modules whose docstrings are used."""

_SECTION, _MAX_SECTION_CHARS, _SECTIONS = 900, 4000, 14
_DOCSTRING = 1600


def sections(file: Path, start: int, count: int, most: int, *, titled: bool) -> Iterator[Collection]:
    """Passages of whole pages; each query is made from one sentence, which is removed from half of the passages."""
    rng = Random(f"sections:{titled}")
    texts: list[tuple[str, str]] = []
    for title, paragraphs in _pages(file, start, count):
        texts += [(title if titled else "", text) for text in _sections(paragraphs)]
    queries = []
    for number in rng.sample(range(len(texts)), min(most, len(texts))):
        title, text = texts[number]
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if 60 < len(s) < 300]
        if not sentences:
            continue
        sentence = rng.choice(sentences)
        left = text.replace(sentence, " ").strip()
        if rng.random() < 0.5 and len(left) > 200:
            texts[number] = (title, left)
        query = _query_from(sentence, rng)
        if query:
            query = query.lower() if rng.random() < 0.3 else query
            queries.append(Query(text=query, relevant=relevant_to({number})))
    yield Collection(documents=passages(texts), queries=queries)


def _query_from(sentence: str, rng: Random) -> str:
    """A query made from a sentence: itself, some of its words, or a topic; empty if it has too few words."""
    content = keywords(sentence)
    plain = [w for w in content if not w[0].isupper() and not w.isdigit()]
    style = rng.choice(("sentence", "keywords", "keywords", "topic"))
    if style == "sentence":
        return sentence
    if style == "topic":
        return rng.choice(_TOPICS).format(*rng.sample(plain, 3)) if len(plain) > 3 else ""
    chosen = content if rng.random() < 0.5 else plain
    if len(chosen) < 3:
        return ""
    kept = sorted(rng.sample(range(len(chosen)), rng.randint(2, min(6, len(chosen)))))
    return " ".join(chosen[n] for n in kept)


def topics(file: Path, start: int, count: int, most: int) -> Iterator[Collection]:
    """Untitled paragraphs, and queries of a page's frequent words: its paragraphs with two of them are relevant."""
    rng = Random("topics")
    held = [[p for p in paragraphs if 250 < len(p) < 2500][:8] for _, paragraphs in _pages(file, start, count)]
    held = [paragraphs for paragraphs in held if len(paragraphs) >= 3]
    frequency = Counter(w for paragraphs in held for w in {w for p in paragraphs for w in words(p)})
    texts: list[tuple[str, str]] = []
    queries = []
    for paragraphs in held:
        first = len(texts)
        texts += [("", p) for p in paragraphs]
        counts = Counter(w for p in paragraphs for w in re.findall(r"\b[a-z]{4,}\b", p))
        weight = {
            w: n * float(np.log(len(held) / frequency[w]))
            for w, n in counts.items()
            if n > 1 and frequency[w] and w not in STOPWORDS
        }
        typical = sorted(weight, key=lambda w: (-weight[w], w))[:12]
        if len(typical) < 5:
            continue
        picked = rng.sample(typical, rng.randint(3, 5))
        relevant = {first + n for n, p in enumerate(paragraphs) if sum(f" {w}" in f" {p}" for w in picked) >= 2}
        if relevant:
            joint = rng.choice((" ", " ", " ", " and ", " of ", " in "))
            request = rng.choice(_REQUESTS).format(" ".join(picked[:2]) + joint + " ".join(picked[2:]))
            queries.append(Query(text=request, relevant=relevant_to(relevant)))
    rng.shuffle(queries)
    yield Collection(documents=passages(texts), queries=queries[:most])


def bodies(file: Path, start: int, count: int, most: int, *, titled: bool) -> Iterator[Collection]:
    """Paragraphs of pages without their first ones; queries in other words for the topics of pages.

    A query is made from a page's first paragraph, and its other paragraphs are relevant; or it is a heading with the
    page's title, and the paragraphs under that heading are relevant. Such a query says the same in other words, unlike
    words from the passages. The title of a passage is the heading above it.
    """
    part = "bodies_titled" if titled else "bodies"
    rng = Random(part)
    texts: list[tuple[str, str]] = []
    queries = []
    for title, paragraphs in _pages(file, start, count):
        held = [(heading, p) for heading, p in _headed(paragraphs[1:]) if 250 < len(p) < 2500][:_BODY]
        if len(held) < 2:
            continue
        first = len(texts)
        texts += [(heading if titled else "", p) for heading, p in held]
        summary = _described(paragraphs[0], rng)
        if summary:
            queries.append(Query(text=summary, relevant=relevant_to(range(first, len(texts)))))
        headings = sorted({h for h, _ in held if h and h.lower() not in _PLAIN_HEADINGS})
        if headings:
            chosen = rng.choice(headings)
            request = rng.choice(_HEADED).format(heading=chosen, title=re.sub(r" \(.*\)", "", title))
            under = {first + n for n, (heading, _) in enumerate(held) if heading == chosen}
            queries.append(Query(text=_loose(request, rng), relevant=relevant_to(under), part=f"{part}_headed"))
    rng.shuffle(queries)
    yield Collection(documents=passages(texts), queries=queries[:most], restyled=0.2)


def _headed(paragraphs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each paragraph with the heading above it, which is a line of few words that ends in a full stop."""
    heading = ""
    for paragraph in paragraphs:
        if len(paragraph) < 60 and paragraph.endswith(".") and len(paragraph.split()) < 8:
            heading = paragraph[:-1]
        else:
            yield heading, paragraph


def _described(paragraph: str, rng: Random) -> str:
    """A query from a page's own description, mostly without names; empty if there is too little text."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", paragraph) if 50 < len(s) < 300][:4]
    if not sentences:
        return ""
    at = rng.randrange(len(sentences))
    text = " ".join(sentences[at : at + rng.choice((1, 1, 2))])
    if rng.random() < 0.7:
        text = re.sub(r"\([^)]*\)|\b[A-Z][\w'-]*|\S*\d\S*", " ", text)
    text = re.sub(r"[^\w\s,'-]", " ", text)
    text = " ".join(re.sub(r"(\s*,)+(?=\s)", ",", text).split()).strip(" ,")
    if len(keywords(text)) < 5:
        return ""
    if rng.random() < 0.25:
        content = keywords(text)
        kept = sorted(rng.sample(range(len(content)), min(len(content), rng.randint(4, 8))))
        text = " ".join(content[n] for n in kept)
    return _loose(rng.choice(_REQUESTS).format(text), rng)


def _loose(request: str, rng: Random) -> str:
    return request.lower() if rng.random() < 0.6 else request


def docstrings(most: int) -> Iterator[Collection]:
    """Docstrings, queried by their content, by names and by keywords."""
    rng = Random("docstrings")
    texts: list[tuple[str, str]] = []
    queries = []
    for name, docstring in _docstrings():
        summary, _, rest = docstring.partition("\n\n")
        summary = " ".join(summary.split())
        short, titled, style = name.split(".")[-1], rng.random() < 0.5, rng.random()
        query = ""
        if style < 0.3 and len(rest) > 120:  # the summary is the query, and is removed from the passage
            docstring = rest
            query = rng.choice(_TASKS).format(summary[:200].rstrip(".").lower())
        elif style < 0.55:
            query = rng.choice((short, name, f"{short}()", f"what is {short} for?", f"how to use {name}"))
        elif style < 0.8:
            telling = [w for w in re.findall(r"[a-z_]{3,}", summary.lower()) if w not in STOPWORDS]
            query = " ".join(rng.sample(telling, min(len(telling), rng.randint(2, 4)))) if len(telling) > 2 else ""
        if query:
            queries.append(Query(text=query, relevant=relevant_to({len(texts)})))
        texts.append((name if titled else "", ("" if titled else f"{short}\n") + docstring[:_DOCSTRING]))
    rng.shuffle(queries)
    yield Collection(documents=passages(texts), queries=queries[:most], restyled=0.2)


def _docstrings() -> Iterator[tuple[str, str]]:
    """The dotted name and docstring of modules, their functions and classes, and their methods; each once."""
    seen = set()
    for module_name in MODULES:
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # a build of Python without it
            continue
        items: list[tuple[str, Any]] = [(module_name, module)]
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or not callable(value):
                continue
            items.append((f"{module_name}.{name}", value))
            if inspect.isclass(value):
                methods = sorted((n, m) for n, m in vars(value).items() if not n.startswith("_") and callable(m))
                items += [(f"{module_name}.{name}.{n}", m) for n, m in methods]
        for name, value in items:
            docstring = inspect.getdoc(value) or ""
            if len(docstring) >= 90 and docstring not in seen:
                seen.add(docstring)
                yield name, docstring


def _pages(file: Path, start: int, count: int) -> Iterator[tuple[str, list[str]]]:
    """Title and paragraphs of some of the pages; a page begins with its title."""
    for _, line in islice(read_lines(file, ("title", "text")), start, start + count):
        paragraphs = [p.strip() for p in line["text"].split("\n") if p.strip()]
        yield line["title"], paragraphs[1:] if paragraphs[:1] == [line["title"].strip()] else paragraphs


def _sections(paragraphs: list[str]) -> list[str]:
    """Runs of whole paragraphs with about the same length."""
    found, held = [], ""
    for paragraph in paragraphs:
        if held and len(held) + len(paragraph) > _SECTION:
            found.append(held)
            held = ""
        held = f"{held}\n{paragraph}" if held else paragraph
    found.append(held)
    return [text[:_MAX_SECTION_CHARS] for text in found if len(text) > 200][:_SECTIONS]
