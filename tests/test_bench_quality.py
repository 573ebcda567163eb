"""The sweep on small samples: what is measured, resuming after a real kill, and what cannot be measured."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from compmem.backbone import MemoryConfig
from compmem.encoder import TextWithSpans, load_encoder
from compmem.errors import ReaderError
from compmem.schema import Document
from compmem_research.bench import memory as memories
from compmem_research.bench.backbone_chat import BackboneChat
from compmem_research.bench.cells import Cell, Sources
from compmem_research.bench.commands import app
from compmem_research.bench.measuring import TIMES, ask, measure
from compmem_research.bench.memory import Memories, Models
from compmem_research.bench.plots import draw
from compmem_research.bench.quality import Sweep, suite, sweep
from compmem_research.bench.quality_report import results
from compmem_research.bench.report import report
from compmem_research.bench.scores import summary
from compmem_research.bench.sharing import shared
from compmem_research.bench.systems import SYSTEMS, system_run, with_readers
from compmem_research.tasks.sample import Sample, Span
from tests.hashing import HashEncoder
from tests.samples import write_samples

MEASURED = ("index_s", "first_s", "warm_s", "peak", "disk")


def sample(number=0, noise=6):
    """Two hops among unrelated notes."""
    facts = [
        Document(id="a", title="Acme", text=f"Acme {number} rents the Harbour Building."),
        Document(id="b", title="Harbour Building", text=f"It is insured by Lloyd {number}."),
    ]
    others = [Document(id=f"n{i}", title=f"Zoo {i}", text=f"Animals of kind {i} live there.") for i in range(noise)]
    return Sample(
        id=f"q{number}", task="own", question="Who insures the building that Acme rents?", answers=(f"Lloyd {number}",),
        documents=(*others[: noise // 2], *facts, *others[noise // 2 :]), tokens=100 + noise * 10,
        evidence=tuple(Span(document=d.id, start=0, end=len(d.text)) for d in facts),
    )  # fmt: skip


@pytest.fixture(scope="module")
def models():
    return Models(plain=load_encoder(HashEncoder()))


def row_of(name, models, given=None, scan_until=10**9):
    given = given or sample()
    with Memories(given, models, scan_until=scan_until) as made:
        return measure(system_run(name), made.get(system_run(name)), given, models, before="What is that?")


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if "extractive" in system.readers])
def test_every_system_answers_without_a_model_and_is_measured(models, name):
    row = row_of(name, models)
    assert {"score", "em", "f1", "sub_em", "sub_em_two_way", "proposed", "read", "blocks", "steps", "in", "out"} <= {
        *row
    }
    assert row["score"] == row["sub_em"]
    assert 0 <= row["read"] <= row["proposed"] <= 1
    assert all(len(row[name]) == 2 and min(row[name]) >= 0 for name in TIMES)
    assert 0 < row["first_s"][1] >= row["index_s"][1]
    assert (row["disk"] > 0) == SYSTEMS[name].keeps
    assert len(row["memory"]) == row["steps"]
    if name in ("full-context", "memagent", "gru-mem-no-exit", "lychee-no-gate"):
        assert row["read"] == 1.0


def test_a_scan_of_a_long_context_is_timed_on_some_steps(models, monkeypatch):
    monkeypatch.setattr(memories, "CHUNK", 32)
    long = sample(noise=200)
    row = row_of("memagent", models, long, scan_until=100)
    assert row["timed_steps"] == memories.SAMPLED
    assert row["steps"] > 3 * memories.SAMPLED
    assert row["blocks"] == row["steps"]
    assert "score" not in row
    whole = row_of("memagent", models, long)
    assert "timed_steps" not in whole
    assert whole["steps"] == row["steps"]


def test_what_a_model_writes_in_a_scan_is_scaled_to_all_steps(models, monkeypatch):
    monkeypatch.setattr(memories, "CHUNK", 32)
    talking = Models(chat=lambda messages: "Acme rents; Lloyd insures.", plain=models.plain)
    long = sample(noise=200)
    row, whole = (row_of("memagent:chat", talking, long, **until) for until in ({"scan_until": 100}, {}))
    assert "timed_steps" in row and "timed_steps" not in whole
    assert row["in"] == pytest.approx(whole["in"], rel=0.35)
    assert row["out"] == pytest.approx(whole["out"], rel=0.35)


def test_a_truncated_context_loses_the_evidence_in_its_middle(models, monkeypatch):
    monkeypatch.setattr(memories, "CHUNK", 64)
    long = sample(noise=600)
    monkeypatch.setattr(memories, "_ends", lambda chunks, tokens: [*chunks[:2], *chunks[-2:]])
    object.__setattr__(long, "tokens", 10**6)
    row = row_of("truncation", models, long)
    assert row["blocks"] == 4
    assert row["read"] == row["proposed"] == 0.0


def test_the_exit_is_told_from_the_step_of_the_last_evidence(models):
    both = row_of("gru-mem-no-exit", models)
    assert "exit" not in both
    kinds = {row_of(name, models).get("exit") for name in ("compmem", "compmem-one-pass", "gru-mem")}
    assert kinds <= {"early", "exact", "late"}
    assert row_of("compmem-one-pass", models)["exit"] == "early"


def test_chat_systems_ask_the_model_as_their_papers_do(models):
    heard = []

    def chat(messages):
        heard.append(messages[-1]["content"])
        ends = "from the blocks alone" in heard[-1] or "Notes taken" in heard[-1]
        return "Lloyd 0" if ends else "Acme rents; Lloyd insures."

    talking = Models(chat=chat, plain=models.plain)
    calls_of = {"full-context:chat": 1, "rag-fused:chat": 1, "compmem-once:chat": 1, "memagent:chat": 2}
    for name, calls in calls_of.items():
        heard.clear()
        row = row_of(name, talking)
        assert (len(heard), row["score"]) == (calls, 1.0)
        assert "insured by Lloyd" in heard[0]
        assert row["in"] > 0 < row["out"]


def test_latent_and_chat_systems_run_on_one_backbone(models, tiny_backbone):
    backbone = tiny_backbone(memory=MemoryConfig(ratio=4), max_position_embeddings=16384)
    both = Models(
        plain=models.plain, backbone=backbone, backbone_name="tiny", chat=BackboneChat(backbone, most_tokens=4)
    )
    config = SYSTEMS["lychee-no-gate"].config
    assert config.memory_tokens == 1024
    said = BackboneChat(backbone, most_tokens=4)([{"role": "user", "content": "Who?"}])
    assert isinstance(said, str)
    with pytest.raises(ReaderError, match="larger than the context of 16384"):
        row_of("full-context:chat", both, sample(noise=600))
    with Memories(sample(noise=2), both, scan_until=10**9) as made:
        held = made.get(system_run("lychee-no-gate:latent"))
        assert held.index.info().kv_bytes > 0
        assert len(held.gold) == 1
        assert made.get(system_run("compmem-once:latent")).index.config.chunk_tokens == 256
        with held.index.question_context("Who?", None, config) as context:
            assert context.fetch(context.propose(""))[0].kv is not None


def test_a_paragraph_is_read_once_and_charged_each_time():
    inner = load_encoder(HashEncoder())
    encoder, account = shared(inner)
    one = TextWithSpans("Acme", "It rents. It pays.", ((0, 9), (10, 18)))
    assert np.array_equal(encoder.encode_with_spans([one])[0], inner.encode_with_spans([one])[0])
    spent, charged = account.spent, account.charged
    encoder.encode_with_spans([one, one])
    assert np.array_equal(account.spent, spent)
    assert account.charged == pytest.approx(3 * charged)
    two = TextWithSpans("", "It rents. It pays.\n\nIt rents. It pays.", ((0, 9), (10, 18), (20, 29), (30, 38)))
    found = encoder.encode_with_spans([two])[0]
    assert found.shape[0] == 5
    assert np.allclose(found[1:3], found[3:5])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_means_do_not_depend_on_the_order_of_rows(models):
    rows = [{"cell": "c", **row_of("compmem", models, sample(n))} for n in range(4)]
    assert summary(rows) == summary(rows[::-1])
    [entry] = summary(rows)
    value, low, high = entry["score"]
    assert low <= value <= high
    assert entry["questions"] == 4


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("moon@7k", "unknown task 'moon'"),
        ("hqa@8k", "unknown length '8k'"),
        ("hqa@7k+up", "unknown variant 'up'"),
        ("vt@7k+first", "unknown variant 'first'"),
    ],
)
def test_a_cell_that_is_not_there_is_named(name, why):
    with pytest.raises(ValueError, match=why):
        Cell.read(name)


def test_names_of_systems_and_suites():
    assert system_run("lychee:latent").name == "lychee:latent"
    assert with_readers(["rag-dense"]) == ["rag-dense", "rag-dense:chat"]
    with pytest.raises(ValueError, match="lychee has the readers extractive, latent"):
        system_run("lychee:chat")
    with pytest.raises(ValueError, match="unknown suite 'x'"):
        suite("x")
    for cells, systems in map(suite, ("length", "chunks", "ablations", "tasks", "ruler", "memory", "model")):
        assert all(map(Cell.read, cells)) and all(map(system_run, systems))
    assert set(suite("length", readers=True)[1]) > {"compmem-once:chat", "compmem-once:latent", "rag-fused:latent"}


def test_made_up_tasks_need_no_files(tmp_path, models):
    sources = Sources(tmp_path, models.plain.count_tokens, 2)
    for name in ("world@7k", "niah_multikey_1@7k"):
        assert len(sources.samples(Cell.read(name))) == 2
    with pytest.raises(OSError, match="hotpotqa_dev"):
        sources.samples(Cell.read("hqa@7k"))


def same(folder):
    scores = json.loads((folder / "scores.json").read_text())
    for entry in scores["scores"]:
        for name in [n for n in entry if n.startswith(MEASURED)]:
            del entry[name]
    return scores


@pytest.mark.slow
def test_a_run_that_is_killed_and_started_again_gives_the_same_table(tmp_path):
    data = tmp_path / "own.jsonl"
    write_samples(data, [sample(n, noise=30) for n in range(10)])
    given = {"data": tmp_path, "cells": (str(data),), "systems": ("rag-fused", "compmem"), "questions": 10}
    assert sweep(Sweep(out=tmp_path / "whole", **given)) == 0
    command = [
        sys.executable, "-c", "from compmem_research.bench.commands import app; app()", "quality",
        "--data", str(tmp_path), "--conditions", str(data), "--systems", "rag-fused,compmem", "--questions", "10",
        "--out", str(tmp_path / "cut"),
    ]  # fmt: skip
    rows = tmp_path / "cut" / "predictions.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ})
    ends = time.monotonic() + 60
    while time.monotonic() < ends and (not rows.exists() or rows.read_bytes().count(b"\n") < 3):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = rows.read_bytes().count(b"\n")
    assert 3 <= done < 20
    with rows.open("ab") as file:  # a line that was being written when the process was killed
        file.write(b'{"cell":"own","id":"q')
    before = rows.read_bytes().split(b"\n")[:done]
    assert sweep(Sweep(out=tmp_path / "cut", **given)) == 0
    assert rows.read_bytes().split(b"\n")[:done] == before
    assert rows.read_bytes().count(b"\n") == 20
    assert same(tmp_path / "cut") == same(tmp_path / "whole")
    with pytest.raises(ValueError, match="was measured with questions=10, not 3"):
        sweep(Sweep(out=tmp_path / "cut", **{**given, "questions": 3}))


def test_what_cannot_be_measured_is_told_in_a_line_and_the_rest_goes_on(tmp_path):
    pytest.importorskip("openai")
    good, broken = tmp_path / "good.jsonl", tmp_path / "broken.jsonl"
    write_samples(good, [sample()])
    broken.write_text('{"id": "x"}\n')
    done = CliRunner().invoke(app, [
        "quality", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--questions", "1", "--model", "m",
        "--base-url", "http://127.0.0.1:9/v1", "--systems", "nosuch,compmem:chat,compmem",
        "--conditions", f"{broken},{tmp_path / 'gone.jsonl'},{good}",
    ])  # fmt: skip
    assert done.exit_code == 1
    lines = [line for line in done.output.splitlines() if line.strip()]
    for part in ("unknown system 'nosuch'", "http://127.0.0.1:9/v1", "broken.jsonl:1", "gone.jsonl", "left out"):
        assert sum(part in line for line in lines) >= 1, (part, lines)
    kept = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert [(e["system"], e["questions"]) for e in kept["scores"]] == [("compmem", 1)]
    assert len(kept["failed"]) == 4


def test_the_page_and_the_plots_come_from_the_folders_of_runs(tmp_path, models):
    for suite_name, system in (("length", "compmem"), ("chunks", "chunks-loop"), ("memory", "memagent")):
        run = tmp_path / suite_name
        data = tmp_path / "own.jsonl"
        write_samples(data, [sample(n) for n in range(2)])
        assert sweep(Sweep(data=tmp_path, out=run, cells=(str(data),), systems=(system,), questions=2)) == 0
        scores = json.loads((run / "scores.json").read_text())
        [entry] = scores["scores"]
        cells = ("hqa@56k", "hqa@112k", "hqa@224k")
        scores["scores"] = [{**entry, "cell": cell} for cell in cells]
        scores["cells"] = {cell: {"tokens": 56000 * 2**i, "filled": 0.25 * i} for i, cell in enumerate(cells)}
        (run / "scores.json").write_text(json.dumps(scores))
    plots = draw(results(tmp_path), tmp_path / "plots")
    assert {p.name for p in plots} == {
        "length-score.png",
        "length-seconds.png",
        "chunks-recall.png",
        "memory-tokens.png",
    }
    assert all(1000 < p.stat().st_size < 200_000 for p in plots)
    page = report(tmp_path, plots)
    assert "*published: LycheeMemory-7B*" in page
    assert "*84.1*" in page
    assert "hqa@224k (50 % filled up)" in page
    value, low, high = scores["scores"][0]["score"]
    assert f"{value:.1f} [{low:.0f}, {high:.0f}]" in page
    assert "](plots/length-seconds.png)" in page
    assert str(tmp_path) not in page


def test_an_answer_tells_what_was_proposed(models):
    one = system_run("rag-bm25")
    with Memories(sample(), models, scan_until=10**9) as made:
        told = ask(one, made.get(one).index, sample().question, models)
        assert told.proposed == told.ranked
        assert len(told.found.steps) == 1
