"""A tiny model's answers from paragraphs as text and as KV states."""

import json
from dataclasses import replace

import pytest
import torch

from compmem.backbone import AdapterConfig, MemoryConfig
from compmem_research.bench.fusion import Settings, measure
from compmem_research.bench.fusion_report import pages
from tests.test_bench_answers import ASKED, FILLING
from tests.test_tasks import write


def test_methods_beside_text_and_a_run_that_goes_on(tmp_path, tiny_backbone):
    data = write(tmp_path / "own.jsonl", ASKED, {**ASKED, "id": "q2"})
    settings = Settings(
        methods=("none", "prophetkv", "graph-kv+epic"), ratios=(1, 4), blocks=3, max_tokens=6, share=1.0
    )
    backbone, rows = tiny_backbone(max_position_embeddings=4096), tmp_path / "run.jsonl"
    result = measure([data], settings, {"tiny": backbone}, rows=rows)
    by = {(row["method"], row["ratio"]): row for row in result["fusion"]}
    assert set(by) == {("text", 0), *((m, r) for m in settings.methods for r in (1, 4))}
    assert all(row["questions"] == 2 for row in by.values())
    lines = rows.read_text().splitlines()
    said = {(row["method"], row["ratio"]): row["answer"] for row in map(json.loads, lines)}
    assert by["prophetkv", 1]["agreement"] == 100 > by["none", 1]["agreement"]
    gained = by["prophetkv", 1]["agreement"] - by["none", 1]["agreement"]
    assert by["prophetkv", 1]["agreement to none"] == pytest.approx(gained, abs=0.11)
    assert "agreement" not in by["text", 0]
    assert "agreement to none" not in by["none", 1]
    assert said["prophetkv", 1] == said["text", 0] != said["none", 1], "all tokens computed again are the text"
    assert 0.25 * by["none", 1]["bytes"] < by["none", 4]["bytes"] < 0.4 * by["none", 1]["bytes"]
    # Text and all tokens computed again are one computation; the loss is that of the stock model.
    assert by["prophetkv", 1]["loss"] == pytest.approx(by["text", 0]["loss"], abs=1e-3)
    assert by["none", 1]["loss"] != by["text", 0]["loss"]
    page = "\n".join(pages(result))
    assert page.count("\n| ") == 2 + len(by)
    assert measure([data], settings, {"tiny": backbone}, rows=rows) == result
    assert rows.read_text().splitlines() == lines, "nothing is measured twice"


def test_paragraphs_that_were_read_together_are_compared_with_those_read_alone(tmp_path, tiny_backbone):
    data = write(tmp_path / "own.jsonl", ASKED, {**ASKED, "id": "q2", "question": "Who rents the house?"})
    settings = Settings(methods=("none",), ratios=(1, 4), windows=(0, 100, 4000), blocks=2, max_tokens=6)
    backbone, rows = tiny_backbone(max_position_embeddings=4096), tmp_path / "run.jsonl"
    result = measure([data], settings, {"tiny": backbone}, rows=rows)
    by = {(row["ratio"], row.get("window", 0)): row for row in result["fusion"]}
    assert list(by) == [(0, 0), (1, 0), (1, 100), (1, 4000), (4, 0), (4, 100), (4, 4000)]
    # The gold paragraphs are the first two of three, in their order: read in one pass they are the text.
    assert by[1, 4000]["loss"] == pytest.approx(by[0, 0]["loss"], abs=1e-3)
    assert by[1, 4000]["agreement"] == 100 > by[1, 0]["agreement"]
    gained = by[1, 4000]["agreement"] - by[1, 0]["agreement"]
    assert by[1, 4000]["agreement to alone"] == pytest.approx(gained, abs=0.11)
    assert by[1, 100]["loss"] == by[1, 4000]["loss"] != by[1, 0]["loss"], "both have the first two in one window"
    assert by[4, 4000]["bytes"] == by[4, 0]["bytes"]
    assert by[4, 4000]["loss"] != by[4, 0]["loss"]
    assert "f1 to alone" not in by[4, 0]
    page = "\n".join(pages(result))
    assert "| none | 4 | attention | 4000 | bf16 |" in page
    assert "| none | 4 | attention | - | bf16 |" in page


def test_a_long_chunk_at_ratio_1_is_the_text(tmp_path, tiny_backbone):
    data = write(tmp_path / "own.jsonl", ASKED, {**ASKED, "id": "q2", "question": "Who rents the house?"})
    backbone, rows = tiny_backbone(max_position_embeddings=4096), tmp_path / "run.jsonl"
    found = {}
    for size in (0, 100, 4000):
        settings = Settings(methods=("none",), ratios=(1,), blocks=3, chunk_tokens=size, max_tokens=6)
        text, memory = measure([data], settings, {"tiny": backbone}, rows=rows)["fusion"]
        found[size] = (text["loss"], memory["loss"], memory["agreement"])
    assert found[4000][1] == pytest.approx(found[4000][0], abs=1e-3)
    assert found[4000][2] == 100
    assert found[100][0] == found[4000][0] != found[0][0], "text in the order of the context"
    assert found[100][1] != pytest.approx(found[100][0], abs=1e-3), "two chunks do not see one another"
    assert len(rows.read_text().splitlines()) == 2 * 3 * 2, "each size has its own rows"


def test_of_a_long_context_the_chunks_with_gold_paragraphs_are_recalled(tmp_path, tiny_backbone):
    filling = {**ASKED, "id": "q2", "paragraphs": FILLING}
    data = write(tmp_path / "own.jsonl", ASKED, filling)
    backbone, rows = tiny_backbone(max_position_embeddings=4096), tmp_path / "run.jsonl"
    settings = Settings(methods=("none",), ratios=(1,), max_tokens=6, limit=1)
    whole, two = (
        replace(settings, context_tokens=context, chunk_tokens=size) for context, size in ((200, 200), (200, 60))
    )
    text, memory = measure([data], whole, {"tiny": backbone}, rows=rows)["fusion"]
    assert memory["loss"] == pytest.approx(text["loss"], abs=1e-3), "the context is one chunk"
    result = measure([data], two, {"tiny": backbone}, rows=rows)
    tokens = [json.loads(line)["tokens"] for line in rows.read_text().splitlines()]
    assert 150 < tokens[0] == tokens[1] <= 200
    assert 0 < tokens[2] == tokens[3] <= 120, "at most two chunks hold the two gold paragraphs"
    assert "Of a context of 200 tokens the chunks of at most 60 that hold gold" in "\n".join(pages(result))
    with pytest.raises(ValueError, match="context_tokens=200 must be"):
        replace(settings, context_tokens=200)


def test_stored_in_fewer_bits_they_are_compared_with_bf16(tmp_path, tiny_backbone):
    data = write(tmp_path / "own.jsonl", ASKED, {**ASKED, "id": "q2", "question": "Who rents the house?"})
    backbone, rows = tiny_backbone(max_position_embeddings=4096), tmp_path / "run.jsonl"
    bf16 = Settings(methods=("none",), ratios=(1, 4), blocks=3, max_tokens=6)
    first = measure([data], bf16, {"tiny": backbone}, rows=rows)["fusion"]
    before = rows.read_text().splitlines()
    more = replace(bf16, kv=("bf16", "int8", "int4"))
    result = measure([data], more, {"tiny": backbone}, rows=rows)
    assert rows.read_text().splitlines()[: len(before)] == before, "rows in bf16 are not measured again"
    by = {(row["ratio"], row.get("kv", "bf16")): row for row in result["fusion"]}
    assert [by[0, "bf16"], by[1, "bf16"], by[4, "bf16"]] == first
    for ratio in (1, 4):
        exact, bytes_, nibbles = (by[ratio, kind] for kind in more.kv)
        assert exact["bytes"] > bytes_["bytes"] > nibbles["bytes"]
        assert abs(bytes_["loss to bf16"]) < abs(nibbles["loss to bf16"])
        assert nibbles["loss to bf16"] == pytest.approx(nibbles["loss"] - exact["loss"], abs=2e-3)
        assert "loss to bf16" not in exact
    assert "| none | 4 | attention | - | int4 | 2 |" in "\n".join(pages(result))
    with pytest.raises(ValueError, match="unknown kv 'fp8'"):
        replace(bf16, kv=("fp8",))


def test_ways_of_pruning_are_compared_question_by_question(tmp_path, tiny_backbone):
    data = write(tmp_path / "own.jsonl", ASKED, {**ASKED, "id": "q2", "question": "Who rents the house?"})
    pruning = ("kvzip-heads", "kvzip", "attention")
    settings = Settings(methods=("none",), ratios=(1, 4), pruning=pruning, blocks=3, max_tokens=1)
    backbone, rows = tiny_backbone(max_position_embeddings=4096), tmp_path / "run.jsonl"
    result = measure([data], settings, {"tiny": backbone}, rows=rows)["fusion"]
    by = {(row["ratio"], row["pruning"]): row for row in result}
    assert list(by) == [(0, "attention"), (1, "attention"), (4, "attention"), (4, "kvzip"), (4, "kvzip-heads")]
    assert by[4, "kvzip"]["bytes"] == by[4, "attention"]["bytes"]
    # Beside that, three blocks have the lengths of two heads of two layers.
    assert by[4, "kvzip-heads"]["bytes"] == by[4, "kvzip"]["bytes"] + 3 * 4 * 2 * 2
    changed = by[4, "kvzip"]["loss"] - by[4, "attention"]["loss"]
    assert by[4, "kvzip"]["loss change"] == pytest.approx(changed, abs=2e-3)
    assert changed
    assert "loss change" not in by[4, "attention"]
    lost = by[4, "kvzip"]["loss"] - by[0, "attention"]["loss"]
    assert by[4, "kvzip"]["loss to text"] == pytest.approx(lost, abs=2e-3)
    assert by[4, "kvzip"]["f1 to text"] == pytest.approx(by[4, "kvzip"]["f1"] - by[0, "attention"]["f1"], abs=0.2)


def test_what_was_trained_is_measured_beside_its_model(tmp_path, tiny_backbone):
    data = write(tmp_path / "own.jsonl", ASKED, {**ASKED, "id": "q2", "question": "Who rents the house?"})
    settings = Settings(methods=("none",), ratios=(1, 4), pruning=("kvzip",), blocks=3, max_tokens=1)
    stock, reader, trained = (tiny_backbone(max_position_embeddings=4096) for _ in range(3))
    for model in (reader, trained):
        model.add_adapter("reasoner", AdapterConfig(rank=2))
    trained.add_memory(MemoryConfig(states="selected", own=(), pruning="kvzip"))
    trained.add_adapter("memory", AdapterConfig(rank=2))
    rows, models = tmp_path / "run.jsonl", {"tiny": stock, "reader": reader, "memory": trained}
    result = measure([data], settings, models, rows=rows)
    by = {(row["model"], row["ratio"], row["pruning"]): row for row in result["fusion"]}
    untrained = [(0, "attention"), (1, "attention"), (4, "kvzip")]
    assert list(by) == [
        *(("tiny", *system) for system in untrained), *(("reader", *system) for system in untrained),
        ("memory", 0, "attention"), ("memory", 4, "trained"),
    ]  # fmt: skip
    before = by["memory", 4, "trained"]
    assert before["loss"] == by["reader", 4, "kvzip"]["loss"] == by["tiny", 4, "kvzip"]["loss"], "before training"
    assert before["f1 to untrained"] == before["agreement to untrained"] == 0.0
    with torch.no_grad():
        for parameter in trained.parameters("memory").values():
            parameter.add_(0.1)
        for parameter in reader.parameters("reasoner").values():
            parameter.add_(0.1)
    again = {
        (row["model"], row["ratio"], row["pruning"]): row
        for row in measure([data], settings, models, rows=rows)["fusion"]
    }
    assert again["memory", 4, "trained"]["loss"] != before["loss"]
    text = (0, "attention")
    assert again["reader", *text]["loss"] != by["reader", *text]["loss"], "its adapter reads"
    assert again["memory", *text]["loss"] == by["memory", *text]["loss"] == by["tiny", *text]["loss"], (
        "text is read without the memory's adapter"
    )
    page = "\n".join(pages(result))
    assert page.count("\n| ") == 2 + len(by)
    assert len(rows.read_text().splitlines()) == 2 * (8 + 5), "only what changed is measured again"


def test_predicted_scores_are_compared_with_what_they_predict(tmp_path, tiny_backbone):
    data = write(tmp_path / "own.jsonl", ASKED, {**ASKED, "id": "q2", "question": "Who rents the house?"})
    settings = Settings(methods=("none",), ratios=(4,), pruning=("kvzip-heads", "kvzap"), blocks=3, max_tokens=1)
    stock, memory, fitted = (tiny_backbone(max_position_embeddings=4096) for _ in range(3))
    for model in (memory, fitted):
        model.add_memory(MemoryConfig(states="selected", own=(), pruning="kvzip-heads"))
        model.add_adapter("memory", AdapterConfig(rank=2))
    for model in (stock, fitted):
        layers, heads, _ = model.shape
        features = model.decoder.layers[0].linear("q").out_features
        model.set_importance(torch.randn(layers, heads, features + 1, generator=torch.Generator().manual_seed(0)))
    models = {"tiny": stock, "memory": memory, "fitted": fitted}
    result = measure([data], settings, models, rows=tmp_path / "run.jsonl")["fusion"]
    by = {(row["model"], row["ratio"], row["pruning"]): row for row in result}
    for predicted, itself in (
        (by["tiny", 4, "kvzap"], by["tiny", 4, "kvzip-heads"]),
        (by["fitted", 4, "trained"], by["memory", 4, "trained"]),
    ):
        assert predicted["loss to kvzip-heads"] == pytest.approx(predicted["loss"] - itself["loss"], abs=2e-3) != 0
        assert "f1 to kvzip-heads 95%" in predicted
        assert "loss to kvzip-heads" not in itself
    assert "loss to kvzip-heads" not in by["fitted", 0, "attention"], "text has no states"


def test_sets_are_told_together_and_one_by_one(tmp_path, tiny_backbone):
    files = [write(tmp_path / f"{name}.jsonl", {**ASKED, "id": name}) for name in ("first", "second")]
    settings = Settings(methods=("none",), ratios=(1,), blocks=3, max_tokens=1)
    models = {"tiny": tiny_backbone(max_position_embeddings=4096)}
    result = measure(files, settings, models, rows=tmp_path / "run.jsonl")
    assert result["data"] == "first, second"
    assert [row["questions"] for row in result["fusion"]] == [2, 2]
    assert {name: [row["questions"] for row in rows] for name, rows in result["by_set"].items()} == {
        "first": [1, 1], "second": [1, 1],
    }  # fmt: skip
    page = "\n".join(pages(result))
    assert [line for line in page.splitlines() if line.endswith(":")] == ["all sets:", "first:", "second:"]


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="unknown method 'blend'"):
        Settings(methods=("epic+blend",))
    with pytest.raises(ValueError, match="unknown pruning 'snapkv'"):
        Settings(methods=("none",), pruning=("snapkv",))
    with pytest.raises(ValueError, match="kvzip-heads and kvzap cannot be read with the method ape"):
        Settings(methods=("none", "epic+ape"), pruning=("kvzip-heads",))
    with pytest.raises(ValueError, match="blocks=0"):
        Settings(methods=("none",), blocks=0)
    with pytest.raises(ValueError, match=r"windows=\(0, -1\)"):
        Settings(methods=("none",), windows=(0, -1))
    with pytest.raises(ValueError, match="chunk_tokens=100 must be 0, or above it and without windows"):
        Settings(methods=("none",), windows=(0, 500), chunk_tokens=100)


def test_trained_memory_is_read_by_each_method_that_can_read_it(tmp_path, tiny_backbone):
    data = write(tmp_path / "own.jsonl", ASKED)
    settings = Settings(methods=("none", "prophetkv", "ape"), ratios=(4,), blocks=3, max_tokens=1)
    memories = {
        "heads": MemoryConfig(states="selected", own=(), pruning="kvzip-heads"),
        "equal": MemoryConfig(states="selected", own=()),
        "tokens": MemoryConfig(),
    }
    models = {"tiny": tiny_backbone(max_position_embeddings=4096)}
    models |= {name: tiny_backbone(memory=memory, max_position_embeddings=4096) for name, memory in memories.items()}
    found = measure([data], settings, models, rows=tmp_path / "run.jsonl")["fusion"]
    methods = {name: [row["method"] for row in found if row["model"] == name and row["ratio"]] for name in models}
    assert methods == {
        "tiny": ["none", "prophetkv", "ape"], "heads": ["none", "prophetkv"], "equal": ["none", "prophetkv", "ape"],
        "tokens": ["none"],
    }  # fmt: skip
