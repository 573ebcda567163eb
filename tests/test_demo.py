"""The demo: its documents, the evidence of its questions, and at least four of five answered."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compmem import CheckpointError, MemoryIndex
from compmem.backbone import Backbone
from compmem.cli import demo_needles
from compmem.cli.demo import QUESTIONS
from compmem.cli.demo_docs import MODULES, documents
from compmem.cli.demo_needles import Haystack
from compmem.config import IndexConfig
from compmem.encoder import load_encoder
from compmem.ingest.chunking import split
from compmem.naming import EMBEDDED, SMOLLM2


@pytest.fixture(scope="module")
def found():
    return {document.id: document for document in documents()}


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(IndexConfig().encoder)


def flat(text):
    return " ".join(text.split())


def test_the_documentation_is_read_quietly_and_the_same_each_time(found, capsys):
    again = list(documents())
    assert capsys.readouterr() == ("", "")
    assert [(d.id, d.text) for d in again] == [(d.id, d.text) for d in found.values()], "ids are unique, texts settled"
    assert not any(re.search(r" at 0x[0-9a-f]+", d.text) for d in again)
    assert all(d.text.strip() and d.title for d in again)
    assert {"module", "class", "function", "method"} == {d.metadata["kind"] for d in again}
    assert not {"tkinter", "idlelib", "antigravity", "this", "test", "turtle"} & set(MODULES)


def test_it_has_about_three_hundred_thousand_tokens(found, encoder):
    tokens = sum(encoder.count_tokens([d.text for d in found.values()]))
    assert 240_000 < tokens < 360_000


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.first[0])
def test_the_evidence_of_each_question_stands_in_two_chunks(found, encoder, question):
    chunks = []
    for document, words in (question.first, question.second):
        pieces = list(split(found[document], chunk_tokens=IndexConfig().chunk_tokens, count=encoder.count_tokens))
        holding = [piece.id for piece in pieces if words in flat(piece.text)]
        assert holding, f"{words!r} is not in {document}"
        chunks.append(set(holding))
    assert not chunks[0] & chunks[1]
    assert question.is_correct(found[question.second[0]].text)
    assert not question.is_correct(question.text)
    assert not question.is_correct(found[question.first[0]].text), "one document does not suffice"
    assert question.second[0] not in question.text, "the second document is not named by the question"


def test_four_of_five_are_right_in_the_modules_they_are_about(found):
    names = "ssl urllib.request http.server socketserver sys gzip xmlrpc.client pdb bdb cmd numbers".split()
    about = tuple(f"{name}." for name in names)
    with MemoryIndex.create() as index:
        index.add(d for d in found.values() if f"{d.id}.".startswith(about))
        answers = [index.answer(q.text) for q in QUESTIONS]
    right = [q.is_correct(a.text) for q, a in zip(QUESTIONS, answers, strict=True)]
    assert sum(right) >= 0.8 * len(right), [a.text for a in answers]
    for question, answer, is_right in zip(QUESTIONS, answers, right, strict=True):
        if is_right:
            assert {question.first[0], question.second[0]} <= {s.chunk.document_id for s in answer.sources}


def test_the_demo_takes_the_real_model_where_it_is_and_downloads_nothing_that_was_not_named(monkeypatch):
    monkeypatch.setattr(Backbone, "load", lambda name, *, device, base=None: f"{name} over {base}")
    for size, base, wanted in ((None, None, EMBEDDED), (9, None, SMOLLM2), (None, "here", SMOLLM2)):
        monkeypatch.setattr(demo_needles, "size_on_disk", lambda _, size=size: size)
        assert demo_needles._backbone("cpu", base) == (wanted, f"{wanted} over {base}")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="no-such-folder"):
        demo_needles._backbone("cpu", "./no-such-folder")


def test_a_part_of_another_number_is_not_right():
    haystack = Haystack(documents=(), question="?", answer="7047575")
    assert haystack.is_correct("It is 7047575.")
    assert not haystack.is_correct("17047575")


@pytest.mark.slow
def test_the_whole_demo_in_time(tmp_path):
    # Separate processes, as the command is run: loaded modules change some documentation.
    command = [str(Path(sys.executable).with_name("compmem")), "demo", "--index", str(tmp_path / "a")]
    started = time.perf_counter()
    result = subprocess.run([*command, "--json", "--pages", str(tmp_path / "b")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["right"] >= 0.8 * len(told["questions"])
    assert sum(n["latent"] for n in told["needles"]) >= 3
    assert time.perf_counter() - started < 90
    assert len(list((tmp_path / "b").glob("*.html"))) == len(QUESTIONS)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0
    assert "0 documents compressed" in again.stdout
    for part in ("question 1", "step 1", "answer", "score", "expected", f"of {len(QUESTIONS)} right"):
        assert part in again.stdout
