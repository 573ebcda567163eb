"""The shipped small backbone: it loads by its name, reads what it was trained to read, and an index runs on it."""

from pathlib import Path

import pytest
import torch

from compmem import Document, IndexConfig, LoopConfig, MemoryIndex, RuntimeConfig
from compmem.backbone import Backbone
from compmem.ingest.compressor import KVCompressor
from compmem.kv_format import pack, unpack
from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem.schema import Chunk

PEOPLE = [
    f"{a} {b}" for a in ("Tovin", "Marel", "Sulka", "Bendor", "Rilam") for b in ("Hask", "Dorvin", "Pelt", "Unger")
]
CITIES = [f"{a}{b}" for a in ("Gral", "Wend", "Hoss", "Mur") for b in ("stad", "ford", "burg", "haven", "mouth")]


@pytest.fixture(scope="module")
def embedded():
    return Backbone.load("embedded", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def facts(embedded):
    """Questions, answers and compressed chunks, each with one fact among plain words."""
    told = [(f"In which city does {p} live?", c, f"The wind was cold that day. {p} lives in {c}. It was late.")
            for p, c in zip(PEOPLE, CITIES, strict=True)]  # fmt: skip
    with torch.inference_mode():
        made = KVCompressor(embedded, None, None).compress([Chunk(text=text) for _, _, text in told])
    return [(question, city, block.kv) for (question, city, _), block in zip(told, made, strict=True)]


def replies(backbone, facts, kind):
    prompts = StepPrompts(backbone, LatentPrompts.from_backbone(backbone))
    asked = [prompts.step(question, "") for question, _, _ in facts]
    kept = [[unpack(pack(kv, kind))] for _, _, kv in facts]
    with torch.inference_mode():
        written = backbone.generate(asked, kept, max_new_tokens=64, stop_strings=("</next>",))
    return [backbone.decode(ids) for ids in written]


def test_it_reads_out_of_compressed_chunks_what_stands_in_them(embedded, facts):
    right = [city in reply for (_, city, _), reply in zip(facts, replies(embedded, facts, "bf16"), strict=True)]
    assert sum(right) >= 0.7 * len(right)


def test_int8_blocks_give_the_replies_of_bf16_blocks(embedded, facts):
    exact, rounded = (replies(embedded, facts, kind) for kind in ("bf16", "int8"))
    assert sum(a == b for a, b in zip(exact, rounded, strict=True)) >= 0.99 * len(facts)


@pytest.mark.parametrize("name", ["embedded", Path("embedded")], ids=["text", "path"])
def test_it_runs_in_float32_on_a_cpu_unless_told_otherwise(name):
    dtypes = [Backbone.load(name, device="cpu", dtype=d).model.dtype for d in (None, "bfloat16")]
    assert dtypes == [torch.float32, torch.bfloat16]


def test_it_loads_and_saves_without_a_word(capfd, tmp_path):
    Backbone.load("embedded", device="cpu").save(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_index_runs_on_it_by_its_name(tmp_path):
    config = IndexConfig(memory="kv", backbone="embedded", chunk_tokens=96, encoder=None)
    with MemoryIndex.create(tmp_path / "facts.mem", config) as index:
        index.add(
            Document(id=c, text=f"The wind was cold that day. {p} lives in {c}. It was late, and the road was empty.")
            for p, c in zip(PEOPLE[:4], CITIES, strict=False)
        )
    with MemoryIndex.open(tmp_path / "facts.mem", runtime=RuntimeConfig(dtype="int8")) as index:  # the encoder's alone
        answers = [index.answer(f"In which city does {p} live?") for p in PEOPLE[:4]]
        assert all(answer.steps for answer in answers)
        assert sum(answer.found and c in answer.text for answer, c in zip(answers, CITIES, strict=False)) >= 3


def test_weighing_reads_less_and_gets_more_right(embedded):
    right, read = {None: 0, 0.4: 0}, {None: 0, 0.4: 0}
    asked = [*zip(PEOPLE, CITIES, strict=True)][::2]
    config = IndexConfig(memory="kv", backbone="embedded", chunk_tokens=96, encoder=None)
    with MemoryIndex.create(None, config, backbone=embedded) as index:
        index.add(Document(id=p, text=f"{p} lives in {c}.") for p, c in zip(PEOPLE, CITIES, strict=True))
        for weigh in right:
            for person, city in asked:
                answer = index.answer(f"In which city does {person} live?", LoopConfig(reader_threshold=weigh))
                right[weigh] += city in answer.text
                read[weigh] += answer.usage.blocks_read
    assert right[0.4] >= 0.75 * len(asked)
    assert right[0.4] >= right[None]
    assert read[0.4] <= min(1.1 * len(asked), read[None])
