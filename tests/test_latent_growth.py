"""A store of KV blocks far larger than the cache: a question reads all of it through the cache."""

import threading
from pathlib import Path

import pytest

from compmem import Document, IndexConfig, LatentReader, LoopConfig, MemoryIndex, RuntimeConfig

HELD = 32 * 2**20
"""Bytes of cached blocks between uses."""
WIDE = {
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 256,
}  # fmt: skip
"""32 KiB of states per token, from a model that computes little."""


def own_memory():
    """Bytes of this process that are not of files."""
    (line,) = (n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux's /proc")
@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_a_question_over_a_large_store_holds_little_of_it(tiny_backbone, tmp_path, kv):
    backbone = tiny_backbone("qwen3", **WIDE)
    config = IndexConfig(memory="kv", backbone="tiny", encoder=None, chunk_tokens=64, ratio=1, kv=kv)
    texts = [f"Note {n}. " + " ".join(f"Case {n * i % 977} is closed." for i in range(40)) for n in range(24)]
    with MemoryIndex.create(tmp_path / "large.mem", config, backbone=backbone) as index:
        for n, text in enumerate(texts):
            index.add([Document(id=str(n), text=text)])
    size = sum(file.stat().st_size for file in (tmp_path / "large.mem").glob("kv-*"))
    whole = size * {"bf16": 2, "int8": 4}[kv]  # as it is read, in fp32
    assert whole > 30 * HELD
    read_all = LoopConfig.lychee(gate=False, memory_tokens=8)
    reader = LatentReader(backbone, structured=False, memory_tokens=1, answer_tokens=1)
    highest, over = 0, threading.Event()

    def watch():
        nonlocal highest
        while not over.wait(0.005):
            highest = max(highest, own_memory())

    with MemoryIndex.open(
        tmp_path / "large.mem", backbone=backbone, runtime=RuntimeConfig(kv_cache_bytes=HELD)
    ) as index:
        index.answer("Which?", read_all.replace(max_steps=3), reader=reader)  # what is allocated once
        before = own_memory()
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            answer = index.answer("Which case is closed?", read_all)
        finally:
            over.set()
            watcher.join()
        assert answer.usage.blocks_read == index.info().blocks
    # Measured 50 to 145 MB whatever the size of the store: the budget, the step at work, what malloc keeps.
    assert highest - before < 6 * HELD
