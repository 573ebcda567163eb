"""Chunks of one document that are read in one pass: they see one another, and each is a block of its own."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from compmem import Document, IncompatibleStoreError, IndexConfig, MemoryIndex
from compmem.backbone import MemoryConfig, chunk_ids, window_sizes
from compmem.backbone.kvzip import Repetition, repetition_scores
from compmem.backbone.prune import all_states
from compmem.config import KVPruning
from compmem.ingest import compressor
from tests.backbones import close, close_states, tokens
from tests.hashing import HashEncoder

CHUNKS = [tokens(41, 1), tokens(9, 2), tokens(30, 3)]
STOCK = [method for method in get_args(KVPruning) if method != "kvzap"]


@torch.inference_mode()
def test_all_states_of_a_window_are_those_of_its_text(tiny_backbone):
    backbone = tiny_backbone()
    [text] = backbone.compress([[*CHUNKS[0], *CHUNKS[1]]], ratio=1)
    *together, alone = backbone.compress(CHUNKS, ratio=1, windows=[2, 1])
    close(torch.cat([states.keys for states in together], dim=2), text.keys, atol=1e-5)
    close(torch.cat([states.values for states in together], dim=2), text.values, atol=1e-5)
    close_states(alone, backbone.compress(CHUNKS[2:], ratio=1)[0])
    first, second = backbone.compress(CHUNKS[:2], ratio=1)
    close_states(together[0], first)
    assert (together[1].values - second.values).abs().max() > 1e-3, "the second chunk saw the first"


@pytest.mark.parametrize("method", STOCK)
@torch.inference_mode()
def test_each_chunk_of_a_window_keeps_as_much_as_alone(tiny_backbone, method):
    backbone = tiny_backbone(num_hidden_layers=3)
    whole = backbone.compress(CHUNKS, ratio=1, windows=[3])
    together = backbone.compress(CHUNKS, ratio=4, pruning=method, windows=[3])
    alone = backbone.compress(CHUNKS, ratio=4, pruning=method)
    for states, before, all_of_it in zip(together, alone, whole, strict=True):
        assert states.keys.shape == before.keys.shape
        if states.lengths is None:
            index = states.positions.long()[..., None].expand_as(states.keys)
            close(states.keys, all_of_it.keys.gather(2, index), atol=1e-5)
            close(states.values, all_of_it.values.gather(2, index), atol=1e-5)
        else:
            heads = torch.arange(6).repeat_interleave(states.lengths.flatten())
            close(states.keys, all_of_it.keys.flatten(0, 1)[heads, states.positions.long()], atol=1e-5)
    assert any(not torch.equal(a.positions, b.positions) for a, b in zip(together, alone, strict=True))


@torch.inference_mode()
def test_states_are_chosen_while_the_whole_window_is_repeated(tiny_backbone):
    backbone, text = tiny_backbone(), [*CHUNKS[0], *CHUNKS[1], *CHUNKS[2]]
    whole = all_states(backbone.decoder, backbone.rotary, [backbone.chat_prefix_ids + text])
    [score] = repetition_scores(backbone.decoder, backbone.rotary, whole, [text], Repetition(backbone.prompt))
    made = backbone.compress(CHUNKS, ratio=4, pruning="kvzip", windows=[3])
    for states, own in zip(made, score.split(list(map(len, CHUNKS)), dim=2), strict=True):
        assert torch.equal(states.positions.long(), own.topk(-(-own.shape[2] // 4)).indices.sort().values)


def test_windows_that_are_not_possible_are_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"windows=\[2\] are not 3 chunks"):
        tiny_backbone().compress(CHUNKS, windows=[2])
    with pytest.raises(ValueError, match=r"windows=\[2, 2\] are not 3 chunks"):
        tiny_backbone().compress(CHUNKS, windows=[2, 2])
    with pytest.raises(ValueError, match=r"windows=\[4, -1\] are not 3 chunks"):
        tiny_backbone().compress(CHUNKS, windows=[4, -1])
    with pytest.raises(
        ValueError, match=r"chunks 1 to 2 of 1200 tokens takes 1\d\d\d: larger than the context of 1024"
    ):
        tiny_backbone().compress([tokens(5), tokens(600), tokens(600)], windows=[1, 2])
    inserted = tiny_backbone(memory=MemoryConfig())
    with pytest.raises(ValueError, match="inserted memory tokens are compressed alone"):
        inserted.compress(CHUNKS, windows=[3])
    with pytest.raises(ValueError, match="kv_window=0 must be a whole number of at least 1"):
        IndexConfig(kv_window=0)
    config = IndexConfig(memory="kv", backbone="tiny", encoder=None, kv_window=100)
    with pytest.raises(ValueError, match="kv_window=100: memory with inserted tokens compresses each chunk alone"):
        MemoryIndex.create(None, config, backbone=inserted).add([Document(id="a", text="Acme rents a house.")])


@pytest.mark.parametrize("method", STOCK)
@pytest.mark.parametrize("context", [256, 1024, 8192])
def test_the_longest_window_fits_and_no_longer_one(tiny_backbone, method, context):
    backbone = tiny_backbone(max_position_embeddings=context)
    most = backbone.max_window_tokens(ratio=4, pruning=method)
    backbone._compression(4, method).check([[tokens(most)]])
    with pytest.raises(ValueError, match=f"larger than the context of {context}"):
        backbone._compression(4, method).check([[tokens(most + 2)]])
    assert backbone.max_window_tokens(ratio=1, pruning=method) == context - len(backbone.chat_prefix_ids)


def test_a_window_is_of_one_document():
    sizes = [30, 30, 30, 200, 10, 10, 50]
    documents = ["a", "a", "a", "a", "a", "b", "b"]
    assert list(window_sizes(documents, sizes, 70)) == [2, 1, 1, 1, 2]
    assert list(window_sizes(documents, sizes, 0)) == [1] * 7
    assert list(window_sizes([], [], 70)) == []


def stored(index):
    with index.store.snapshot() as snapshot:
        return list(snapshot.blocks(snapshot.select(None)))


def test_an_index_reads_a_document_in_windows(tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr(compressor, "MAX_CHUNKS_ON_DEVICE", 3)  # fewer than a window has
    backbone = tiny_backbone(max_position_embeddings=8192)
    sentences = [f"Acme rents house {n} in Kiel, and Bolt sells rockets." for n in range(8)]
    documents = [Document(id="a", text="\n\n".join(sentences)), Document(id="b", text=sentences[3])]
    config = IndexConfig(memory="kv", backbone="tiny", encoder=HashEncoder(), ratio=2, chunk_tokens=40, kv="bf16")
    for window, expected in ((2048, [16, 2]), (None, [1] * 18), (100, None)):
        path = tmp_path / str(window)
        with MemoryIndex.create(path, replace(config, kv_window=window), backbone=backbone) as index:
            index.add(documents)
            blocks = stored(index)
        ids = [chunk_ids(backbone, block.chunk) for block in blocks]
        sizes = list(window_sizes([block.chunk.document_id for block in blocks], list(map(len, ids)), window or 0))
        assert expected is None or sizes == expected
        assert sum(sizes) == len(blocks) == 18
        made = backbone.compress(ids, ratio=2, pruning="kvzip-heads", windows=sizes)
        for block, states in zip(blocks, made, strict=True):
            assert torch.equal(block.kv.positions, states.positions)
            close(block.kv.values.float(), states.values, atol=2e-2)
        with MemoryIndex.open(path, encoder=HashEncoder(), backbone=backbone) as index:
            assert index.config.kv_window == window
        with pytest.raises(IncompatibleStoreError, match="made with kv_window="):
            MemoryIndex.open_or_create(path, replace(config, kv_window=300), backbone=backbone)


def test_documents_of_one_source_are_read_together(tiny_backbone):
    backbone = tiny_backbone(max_position_embeddings=8192)
    texts = [f"Acme rents house {n} in Kiel." for n in range(4)]
    config = IndexConfig(memory="kv", backbone="tiny", encoder=HashEncoder(), ratio=1, kv_window=500)

    def made(documents):
        with MemoryIndex.create(None, config, backbone=backbone) as index:
            index.add(documents)
            return [block.kv.values for block in stored(index)]

    pages = [Document(id=f"p{n}", text=text, source="a.pdf" if n < 3 else "b.pdf") for n, text in enumerate(texts)]
    together, alone = made(pages), made([replace(page, source="") for page in pages])
    changed = [float((one - other).abs().max() / other.abs().max()) for one, other in zip(together, alone, strict=True)]
    assert max(changed[0], changed[3]) < 0.01, "the first of a source sees nothing before it"
    assert min(changed[1:3]) > 0.05
    with MemoryIndex.create(None, config, backbone=backbone) as index:
        index.add(pages)
        assert index.add([replace(page, source="") for page in pages]) == 0, "another source is no change"


def test_a_short_context_makes_the_windows_shorter(tiny_backbone):
    backbone = tiny_backbone(max_position_embeddings=512)
    text = "\n\n".join(f"Acme rents house {n} in Kiel, and Bolt sells rockets." for n in range(40))
    config = IndexConfig(memory="kv", backbone="tiny", encoder=None, ratio=4, chunk_tokens=60, kv_window=4000)
    with MemoryIndex.create(None, config, backbone=backbone) as index:
        index.add([Document(id="a", text=text)])
        assert len(stored(index)) > 4
