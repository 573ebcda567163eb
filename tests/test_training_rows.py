"""Training rows that are read as text have the layout of those behind memory."""

import numpy as np
import pytest

from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem_research.training import compressor
from compmem_research.training.data.components import TaskPrompts, Turns
from compmem_research.training.data.examples import as_text
from compmem_research.training.data.multihop import MultihopRows
from tests.training import SELECTED, write_set


@pytest.fixture
def backbone(tiny_backbone):
    backbone = tiny_backbone("llama")
    backbone.add_memory(SELECTED)
    assert backbone.chat_prefix_ids
    return backbone


def test_text_stands_where_its_states_are_read_in_rows_of_every_kind(backbone, tmp_path):
    lead, chunk = backbone.chat_prefix_ids, [7, 8, 9]
    turns, asked = Turns(backbone, TaskPrompts()), [([20, 21], [30]), ([22], [31, 32])]
    behind, raw = (turns.asked("facts", chunk, asked, raw=raw) for raw in (False, True))
    assert raw == as_text(backbone, behind)
    assert raw.ids == [*lead, *chunk, *behind.ids[len(lead) :]]
    assert [raw.ids[a:b] for a, b in raw.spans] == [behind.ids[a:b] for a, b in behind.spans]
    file, prompts = write_set(tmp_path / "set.jsonl"), StepPrompts(backbone, LatentPrompts())
    one, other = (
        MultihopRows("multihop", file, prompts, tokens=10, raw=share)(np.random.default_rng(0), 64, 2, False)
        for share in (0.0, 1.0)
    )
    assert [as_text(backbone, row) for row in one] == other


def test_the_model_writes_about_a_text_that_stands_there(backbone, monkeypatch):
    turns, seen = Turns(backbone, TaskPrompts()), []
    row = turns.behind("create", [7, 8, 9], [(turns.create, [])], raw=False)
    monkeypatch.setattr(backbone, "generate", lambda prompts, **_: seen.extend(prompts) or [[5]])
    [done] = compressor.written_by_itself(backbone, [row], 5)
    assert seen == [[*backbone.chat_prefix_ids, 7, 8, 9, *turns.create[len(backbone.chat_prefix_ids) :]]]
    assert done.blocks == row.blocks
