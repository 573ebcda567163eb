"""KV memory from end to end: the index, the latent reader, the gate on the backbone, blocks kept on the device."""

import asyncio
import copy
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compmem import (
    CheckpointError,
    Document,
    IncompatibleStoreError,
    IndexConfig,
    LatentPrompts,
    LatentReader,
    LoopConfig,
    MemoryBlock,
    MemoryIndex,
    RecallConfig,
    RuntimeConfig,
    Usage,
    WorkingMemory,
)
from compmem.backbone import Backbone, MemoryConfig, chunk_ids
from compmem.ingest.compressor import KVCompressor
from compmem.kv_cache import KVCache
from compmem.kv_format import pack, unpack
from compmem.loop.roles import resolve_roles
from compmem.readers.latent_prompts import StepPrompts
from compmem.schema import Chunk, KVStates
from tests.hashing import HashEncoder

DOCUMENTS = [
    Document(id="acme", title="Acme", text="Acme rents the Harbour Building. It makes rockets. It is in Kiel."),
    Document(
        id="harbour", text="The Harbour Building is insured by Lloyd. It has nine floors.", metadata={"year": 2020}
    ),
]
QUESTION = "Who insures the building?"
SHORT = LatentPrompts(
    nothing="none",
    update="Q {question} M {memory} U",
    overwrite="Q {question} M {memory} N",
    answer="Q {question} M {memory} A",
)


def overwriting(backbone, **changes):
    return LatentReader(backbone, prompts=SHORT, structured=False, memory_tokens=12, answer_tokens=12, **changes)


SCAN = LoopConfig.lychee(gate=False, memory_tokens=64)
"""Every block read in document order, the memory overwritten in each step."""


@pytest.fixture
def made(tiny_backbone):
    """Factory of KV indexes over tiny backbones."""
    indexes = []

    def make(path=None, *, backbone=None, encoder=None, add=True, **settings):
        config = IndexConfig(memory="kv", backbone="tiny", encoder=encoder, chunk_tokens=48, **settings)
        index = MemoryIndex.create(path, config, backbone=backbone or tiny_backbone())
        indexes.append(index)
        if add:
            index.add(DOCUMENTS)
        return index

    yield make
    for index in indexes:
        index.close()


# Equivalences


def test_at_ratio_1_the_index_answers_as_plain_generation_does(tiny_backbone, made):
    backbone = tiny_backbone()
    backbone.model.to(torch.bfloat16)
    backbone = Backbone.from_model(backbone.model, backbone.tokenizer)
    index = made(backbone=backbone, ratio=1, add=False)
    index.add([Document(id="one", text="Harbour is insured by Lloyd.")])
    answer = index.answer(QUESTION, SCAN, reader=overwriting(backbone))
    text = backbone.chat_prefix_ids + backbone.encode("Harbour is insured by Lloyd.\n\n")
    step, last = backbone.prompt(SHORT.overwrite), backbone.prompt(SHORT.answer)

    def plain(ids):
        out = backbone.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=12, pad_token_id=0,
        )  # fmt: skip
        return backbone.decode(out[0, len(ids) :].tolist()).strip()

    question = backbone.encode(QUESTION)
    asked = step.fill(question=question, memory=backbone.encode("none"))
    assert asked[: len(backbone.chat_prefix_ids)] == backbone.chat_prefix_ids, "the text stands within the turn"
    memory = plain(text + asked[len(backbone.chat_prefix_ids) :])
    assert answer.working_memory == memory
    assert answer.text == plain(last.fill(question=question, memory=backbone.encode(memory)))


def test_a_batch_of_chunks_makes_the_blocks_of_each_alone(tiny_backbone):
    backbone = tiny_backbone(memory=MemoryConfig(ratio=2, window=16))
    compressor = KVCompressor(backbone, 2, None)
    chunks = [Chunk(text="rockets " * n, title="T" if n % 2 else "") for n in (1, 5, 2, 3)]
    with torch.inference_mode():
        together, alone = compressor.compress(chunks), [compressor.compress([c])[0] for c in chunks]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.kv.keys, b.kv.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(a.kv.values, b.kv.values, atol=1e-5, rtol=1e-4)


def test_int8_blocks_give_the_first_token_of_bf16_blocks(tiny_backbone):
    backbone = tiny_backbone()
    prompt = backbone.prompt(SHORT.overwrite)
    ids = prompt.fill(question=backbone.encode("Which?"), memory=backbone.encode("none"))
    texts = [f"Case {n}: the number of the {'red' if n % 2 else 'old'} house is {n * 37 % 101}." for n in range(100)]
    logits, first = {}, {}
    with torch.inference_mode():
        states = backbone.compress([backbone.encode(t) for t in texts], ratio=2)
        for kind in ("bf16", "int8"):
            kept = [[unpack(pack(s, kind))] for s in states]
            logits[kind] = backbone.logits(backbone.read([ids] * len(texts), kept)[:, -1])
            first[kind] = backbone.generate([ids] * len(texts), kept, max_new_tokens=1, stop_ids=())
    worst = (logits["bf16"] - logits["int8"]).abs().amax(-1)
    # Measured 0.034: the worst logit of a case is off by 3.4 % of its logits' standard deviation. One token is all that
    # this holds: with random weights whole answers of four tokens agreed in only 94 of 100 cases. Whole replies of a
    # trained backbone are held in `test_embedded.py`.
    assert (worst / logits["bf16"].std(-1)).mean() < 0.05
    assert sum(a == b for a, b in zip(first["bf16"], first["int8"], strict=True)) >= 99


def test_several_blocks_in_one_step_are_their_states_joined(tiny_backbone, made):
    backbone = tiny_backbone()
    index = made(backbone=backbone, ratio=2, kv_pruning="attention")
    with index.question_context(QUESTION, None, RecallConfig(reader="latent")) as context:
        blocks = context.fetch(context.propose(""))[:3]
    joined = KVStates(
        keys=torch.cat([b.kv.keys for b in blocks], dim=2), values=torch.cat([b.kv.values for b in blocks], dim=2)
    )
    reader = overwriting(backbone)
    apart = reader.read(QUESTION, WorkingMemory(), blocks)
    at_once = reader.read(QUESTION, WorkingMemory(), [replace(blocks[0], kv=joined)])
    assert apart.memory == at_once.memory
    assert apart.update
    assert apart.usage == at_once.usage


@pytest.mark.parametrize("kv", ["bf16", "int8", "int4"])
def test_an_index_opened_again_answers_the_same(tmp_path, tiny_backbone, made, kv):
    backbone = tiny_backbone()
    before = made(tmp_path / "a", backbone=backbone, kv=kv, ratio=2).answer(
        QUESTION, SCAN, reader=overwriting(backbone)
    )
    with MemoryIndex.open(tmp_path / "a", backbone=backbone) as index:
        after = index.answer(QUESTION, SCAN, reader=overwriting(backbone))
        assert index.config.kv == kv
        assert index.verify() == []
    assert (after.text, after.working_memory) == (before.text, before.working_memory)
    assert before.usage.blocks_read == before.usage.steps > 1


def test_a_budget_of_no_bytes_answers_the_same_and_holds_nothing(tmp_path, tiny_backbone, made):
    backbone = tiny_backbone()
    before = made(tmp_path / "a", backbone=backbone).answer(QUESTION, SCAN, reader=overwriting(backbone))
    with MemoryIndex.open(tmp_path / "a", backbone=backbone, runtime=RuntimeConfig(kv_cache_bytes=0)) as index:
        assert index.answer(QUESTION, SCAN, reader=overwriting(backbone)).text == before.text


async def test_async_answers_are_the_sync_ones(tiny_backbone, made):
    backbone = tiny_backbone()
    index = made(backbone=backbone)
    sync = index.answer(QUESTION, SCAN, reader=overwriting(backbone))
    other = await index.aanswer(QUESTION, SCAN, reader=overwriting(backbone))
    assert (other.text, other.working_memory) == (sync.text, sync.working_memory)


def test_streamed_pieces_are_the_answer(tiny_backbone):
    reader = overwriting(tiny_backbone())
    *pieces, usage = reader.write(QUESTION, WorkingMemory(text="Lloyd insures it."))
    [ids] = reader.backbone.generate(
        [reader.backbone.prompt(SHORT.answer).fill(
            question=reader.backbone.encode(QUESTION), memory=reader.backbone.encode("Lloyd insures it.")
        )],
        max_new_tokens=12,
    )  # fmt: skip
    assert isinstance(usage, Usage)
    assert usage.completion_tokens == len(ids)
    assert "".join(pieces).strip() == reader.backbone.decode(ids).strip()


# The index


def test_the_encoder_works_beside_the_backbone_and_the_dense_gate_serves(tiny_backbone, made, caplog):
    with caplog.at_level(logging.INFO):
        index = made(encoder=HashEncoder())
        found = index.search("Who insures the Harbour Building?", 2)
        index.search(QUESTION, 1)
    assert found[0].chunk.document_id in {"acme", "harbour"}
    assert sum("the dense gate is used" in r.message for r in caplog.records) == 1


def test_without_encoder_and_gate_every_block_is_read_in_document_order(made, caplog):
    index = made()
    with caplog.at_level(logging.INFO):
        found = index.search(QUESTION, 99)
    assert [r.chunk.id for r in found] == [c.id for d in ("acme", "harbour") for c in index.chunks(d)]
    assert "in document order" in caplog.text
    only = index.search(QUESTION, 99, filter={"year": 2020})
    assert {r.chunk.document_id for r in only} == {"harbour"}


def test_a_trained_gate_on_the_backbone_decides(tiny_backbone, made):
    backbone = tiny_backbone()
    backbone.add_gate()
    with torch.no_grad():
        backbone.decoder.gate_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    index = made(backbone=backbone, ratio=2)
    config = LoopConfig(reader="latent", max_steps=1, requery=False)
    with index.question_context(QUESTION, None, config) as context:
        blocks = context.propose("")
        scores = context.score("some notes", blocks)
        alone = [context.score("some notes", [n])[0] for n in blocks]
        assert scores == pytest.approx(alone, abs=1e-4)
        assert scores != context.score("others", blocks)
        assert context.threshold == 0.5
        assert len(set(scores)) > 1


def test_info_tells_bytes_for_a_token(made):
    layers, heads, width = 2, 2, 16
    whole = 2 * layers * heads * width * 2
    assert whole / 2 < made(ratio=2, kv="bf16").info().kv_bytes_per_token < 2.2 * whole / 2
    sizes = [made(ratio=2, kv=kind).info().kv_bytes_per_token for kind in ("bf16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_settings_that_name_no_reader_take_the_one_that_suits_the_memory(made):
    def roles(settings, index, **given):
        resolved = resolve_roles(settings, index, lambda: True, **given)
        return resolved.reader, resolved.writer

    kv = IndexConfig(memory="kv", backbone="tiny")
    for settings in (RecallConfig(), RecallConfig(max_steps=2), LoopConfig.memagent(), LoopConfig.lychee()):
        assert roles(settings, kv) == ("latent", None)
        assert roles(settings, IndexConfig()) == ("extractive", None)
        in_order = LoopConfig.complete(settings).order == "document"
        asked = ("chat", None) if in_order else ("extractive", "chat")
        assert roles(settings, IndexConfig(), chat=print) == asked
    unquoted = IndexConfig(memory="kv", backbone="tiny", encoder=None)
    assert roles(RecallConfig(), unquoted, chat=print) == ("chat", None)
    assert resolve_roles(RecallConfig(), kv, lambda: False).writer == "latent"
    assert resolve_roles(RecallConfig(writer="chat"), kv, lambda: True, writes=False).writer is None
    with pytest.raises(ValueError, match="give reader= or"):
        roles(RecallConfig(reader="extractive"), kv, reader=object())
    index = made()
    natural, latent = (index.answer(QUESTION, RecallConfig(max_steps=2), reader=r) for r in (None, "latent"))
    assert (natural.text, natural.evidence) == (latent.text, latent.evidence)
    assert natural.usage.model_calls == latent.usage.model_calls > 0


# The reader


def test_replies_are_read_as_a_chat_models(tiny_backbone, monkeypatch):
    backbone = tiny_backbone()
    reply = "<think>x</think><check>yes</check><update>Lloyd insures it.</update><next>end</next>"
    monkeypatch.setattr(backbone, "generate", lambda *a, **k: [backbone.encode_reply(reply)])
    states = backbone.compress([backbone.encode("some text")])[0]
    block = MemoryBlock(chunk=Chunk(text="some text"), kv=states)
    reading = LatentReader(backbone).read(QUESTION, WorkingMemory(text="old"), [block])
    assert (reading.memory.text, reading.update, reading.exit) == ("Lloyd insures it.", True, True)
    reply = "no tags"
    reading = LatentReader(backbone).read(QUESTION, WorkingMemory(text="old"), [block])
    assert (reading.memory.text, reading.update, reading.usage.malformed_replies) == ("old", False, 1)


def test_weighing_a_block_is_asking_the_stock_model_that_has_read_its_text(tiny_backbone):
    backbone = tiny_backbone()
    texts = [backbone.encode(text) for text in ("Harbour is insured by Lloyd.", "It rained.", "Acme rents Harbour.")]
    prompts = StepPrompts(backbone, SHORT)
    with torch.inference_mode():
        odds = prompts.score_blocks(QUESTION, "none", backbone.compress(texts, ratio=1))
        expected, (yes, no) = [], (backbone.encode(word)[0] for word in ("yes", "no"))
        for text in texts:
            turn = prompts.step(QUESTION, "none")[len(backbone.chat_prefix_ids) :]
            ids = [*backbone.chat_prefix_ids, *text, *turn, *backbone.encode_reply("<check>")]
            logits = backbone.model(torch.tensor([ids])).logits[0, -1]
            expected.append(float(logits[yes] - logits[no]))
    assert odds == pytest.approx(expected, abs=1e-4)
    assert len({round(o, 4) for o in odds}) == 3


def test_a_reader_that_insists_begins_the_reply(tiny_backbone, monkeypatch):
    backbone, asked = tiny_backbone(), []

    def generate(prompts, blocks, **kept):
        asked.append(prompts[0])
        return [backbone.encode("Lloyd insures it.</update><next>continue</next>")]

    monkeypatch.setattr(backbone, "generate", generate)
    block = MemoryBlock(chunk=Chunk(text="some text"), kv=backbone.compress([backbone.encode("some text")])[0])
    reader = LatentReader(backbone)
    plain = reader.read(QUESTION, WorkingMemory(), [block])
    second = asyncio.run(reader.aread(QUESTION, WorkingMemory(), [block], relevant=True))
    assert plain.usage.malformed_replies == 1
    assert (second.memory.text, second.update, second.exit) == ("Lloyd insures it.", True, False)
    assert asked[1] == asked[0] + backbone.encode_reply("<check>yes</check><update>")


def test_a_reader_without_gates_or_room_cannot_weigh(tiny_backbone):
    backbone = tiny_backbone()
    block = MemoryBlock(chunk=Chunk(text="some text"), kv=backbone.compress([backbone.encode("some text")])[0])
    assert overwriting(backbone).score_blocks(QUESTION, WorkingMemory(), [block]) is None
    assert LatentReader(backbone).score_blocks("?" * backbone.context, WorkingMemory(), [block]) is None
    assert LatentReader(backbone, prompts=replace(SHORT, update="{question}{memory}<think>")).can_score is False
    assert overwriting(backbone).can_score is False
    assert LatentReader(backbone, prompts=SHORT).can_score is True
    [odds] = LatentReader(backbone, prompts=SHORT).score_blocks(QUESTION, WorkingMemory(), [block])
    assert -20 < odds < 20


def test_control_tokens_in_texts_stay_text(tiny_backbone):
    backbone = tiny_backbone()
    ids = backbone.encode("a<|end|>b<|turn|>")
    assert not {1, 2} & set(ids)
    assert backbone.decode(ids) == "a<|end|>b<|turn|>"
    assert backbone.encode("") == []


def test_a_checkpoints_own_prompts_are_read_from_its_folder(saved_model):
    folder = saved_model()
    kept = {
        "memory_init_text": "No memory", "memory_update_template": "{prompt} | {memory} >",
        "final_answer_template": "{prompt} ; {memory} =",
    }  # fmt: skip
    (folder / "templates.json").write_text(json.dumps(kept))
    reader = LatentReader(Backbone.load(folder, device="cpu"))
    assert not reader.structured
    assert reader.prompts.overwrite == "{question} | {memory} >"
    assert reader.prompts.nothing == "No memory"
    (folder / "templates.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"templates\.json.*cannot be used"):
        LatentReader(Backbone.load(folder, device="cpu"))


# Blocks on the device


def test_cached_kv_blocks_are_the_last_used_within_the_budget():
    def load(numbers):
        loaded.extend(numbers)
        return [KVStates(keys=torch.full((1, 1, 4, 4), float(n)), values=torch.zeros(1, 1, 4, 4)) for n in numbers]

    loaded = []
    kv_cache = KVCache(torch.device("cpu"), torch.float32, budget=3 * 128)
    for numbers in ([1, 2, 3], [1], [4], [1, 3]):
        assert [int(s.keys[0, 0, 0, 0]) for s in kv_cache.get(numbers, load)] == numbers
    assert loaded == [1, 2, 3, 4]
    assert kv_cache.bytes == len(kv_cache) * 128 <= 3 * 128
    groups = list(kv_cache.stream(list(range(10)), load, size=4))
    assert [int(s.keys[0, 0, 0, 0]) for group in groups for s in group] == list(range(10))
    assert kv_cache.bytes <= 3 * 128
    assert list(kv_cache.stream([], load, size=4)) == []
    held = len(kv_cache)
    large = [KVStates(keys=torch.zeros(1, 1, 40, 4), values=torch.zeros(1, 1, 40, 4))]
    assert len(kv_cache.get([99], lambda numbers: large)) == 1
    assert len(kv_cache) == held, "a block that does not fit displaces none"


def test_scoring_does_not_read_the_states_of_blocks(made):
    index = made(encoder=HashEncoder())
    with index.store.snapshot() as snapshot:
        numbers = snapshot.select(None)
        assert all(b.kv is None and b.vectors is not None for b in snapshot.blocks(numbers, kv=False))
        assert all(b.kv is not None for b in snapshot.blocks(numbers))
        with pytest.raises(ValueError, match="block 99 is not in this snapshot, or has no KV states"):
            snapshot.kv_states([99])


# Bad input


def test_latent_reading_of_a_dense_index_says_what_to_do():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as index:
        index.add(DOCUMENTS)
        with pytest.raises(ValueError, match=r"'latent' reads KV states.*memory='kv'"):
            index.answer(QUESTION, RecallConfig(reader="latent"))
        with pytest.raises(ValueError, match="dense memory, which needs no backbone"):
            index.backbone  # noqa: B018


def test_what_needs_vectors_says_so_without_an_encoder(made):
    index = made()
    for config in (RecallConfig(reader="extractive"), LoopConfig.rag(reader="latent")):
        with pytest.raises(ValueError, match="encoder=None"):
            index.answer(QUESTION, config)


def test_another_backbone_is_refused_by_name(tmp_path, tiny_backbone, made, saved_model):
    made(tmp_path / "a")
    with pytest.raises(IncompatibleStoreError, match=r"was made with the backbone 'tiny' \([0-9a-f]{32}\), not with"):
        MemoryIndex.open(tmp_path / "a", backbone=tiny_backbone(seed=7))
    with (
        MemoryIndex.open(tmp_path / "a", backbone=str(saved_model(seed=7))) as index,
        pytest.raises(IncompatibleStoreError, match="weights or memory settings differ"),
    ):
        index.answer(QUESTION)
    with MemoryIndex.open(tmp_path / "a", backbone=str(saved_model()), runtime=RuntimeConfig(device="cpu")) as index:
        assert index.backbone.shape == (2, 2, 16)
        assert copy.copy(index).backbone.shape == (2, 2, 16)  # a copy knows where the backbone is, too


def test_an_unsupported_family_is_refused_and_nothing_is_lost(tmp_path):
    folder = tmp_path / "gpt"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with MemoryIndex.create(None, IndexConfig(memory="kv", backbone=str(folder), encoder=None)) as index:
        with pytest.raises(CheckpointError, match="family 'gpt2'"):
            index.add(DOCUMENTS)
        assert len(index) == 0


def test_a_prompt_larger_than_the_context_is_refused(tiny_backbone, made):
    backbone = tiny_backbone(max_position_embeddings=96)
    index = made(backbone=backbone, kv_pruning="attention")  # nothing is repeated in the context
    with pytest.raises(ValueError, match="larger than the context of 96"):
        index.answer("why " * 60, SCAN, reader=overwriting(backbone))


def test_a_block_of_another_backbone_or_without_states_is_refused(tiny_backbone):
    reader = overwriting(tiny_backbone())
    other = tiny_backbone(num_hidden_layers=3)
    [states] = other.compress([other.encode("text")])
    with pytest.raises(ValueError, match="are of another backbone"):
        reader.read(QUESTION, WorkingMemory(), [MemoryBlock(chunk=Chunk(text="text"), kv=states)])
    with pytest.raises(ValueError, match="has no KV states"):
        reader.read(QUESTION, WorkingMemory(), [MemoryBlock(chunk=Chunk(text="text"))])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused(saved_model):
    config = IndexConfig(memory="kv", backbone=str(saved_model()), encoder=None)
    with (
        MemoryIndex.create(None, config, runtime=RuntimeConfig(device="cuda")) as index,
        pytest.raises(ValueError, match="torch sees no CUDA device"),
    ):
        index.add(DOCUMENTS)


def test_bad_settings_are_refused(tiny_backbone):
    with pytest.raises(ValueError, match="kv_cache_bytes=-1"):
        MemoryIndex.create(None, IndexConfig(encoder=HashEncoder()), runtime=RuntimeConfig(kv_cache_bytes=-1))
    with pytest.raises(ValueError, match="must be at least 1"):
        LatentReader(tiny_backbone(), memory_tokens=0)
    with pytest.raises(ValueError, match="prompt 'answer' has the gaps"):
        LatentPrompts(answer="{question}")


def test_labels_are_read_before_the_text(tiny_backbone):
    backbone = tiny_backbone()
    assert backbone.decode(chunk_ids(backbone, Chunk(text="It is.", title="Acme"))) == "Acme\nIt is.\n\n"
    released = tiny_backbone(memory=MemoryConfig(ratio=2, window=16, positions="unrotated"))
    assert released.decode(chunk_ids(released, Chunk(text="It is.", title="Acme"))) == "It is."


@pytest.mark.skipif("LYCHEE_REFERENCE_DIR" not in os.environ, reason="LYCHEE_REFERENCE_DIR is not set")
def test_a_released_checkpoint_loads_by_its_folder_and_answers(tmp_path):
    folder = Path(os.environ["LYCHEE_REFERENCE_DIR"]) / "qkv-r4"
    config = IndexConfig(memory="kv", backbone=str(folder), encoder=None, chunk_tokens=64)
    with MemoryIndex.create(tmp_path / "a", config, runtime=RuntimeConfig(device="cpu")) as index:
        index.add(DOCUMENTS)
        prompts = LatentPrompts.read(folder.parent / "templates.json")
        reader = LatentReader(index.backbone, prompts=prompts, structured=False, memory_tokens=16, full_chunk_tokens=16)
        before = index.answer(QUESTION, LoopConfig.lychee(gate=False), reader=reader)
        assert before.usage.blocks_read == len(index)
    with MemoryIndex.open(tmp_path / "a", runtime=RuntimeConfig(device="cpu")) as index:
        reader = LatentReader(index.backbone, prompts=prompts, structured=False, memory_tokens=16, full_chunk_tokens=16)
        assert index.answer(QUESTION, LoopConfig.lychee(gate=False), reader=reader).text == before.text


def test_an_index_takes_the_checkpoints_own_ratio_and_holds_to_it(tiny_backbone, made, tmp_path):
    backbone = tiny_backbone(memory=MemoryConfig(ratio=8, window=16))
    made(tmp_path / "i", backbone=backbone).close()
    with MemoryIndex.open(tmp_path / "i", backbone=backbone) as index, index.store.snapshot() as snapshot:
        block = snapshot.blocks(snapshot.document_blocks("acme"))[0]
        assert block.kv.keys.shape[2] == -(-len(chunk_ids(backbone, block.chunk)) // 8)
    backbone.memory = replace(backbone.memory, ratio=4)
    with pytest.raises(IncompatibleStoreError, match=r"made with ratio=8.* compresses at ratio=4 now"):
        MemoryIndex.open(tmp_path / "i", backbone=backbone)
