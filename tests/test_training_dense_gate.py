"""The stage of the dense gate, from states to weights; its parts against values computed by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compmem.gate import FEATURES, FIRST_FEATURES, GateHead, Network
from compmem.retrieval.ranking import SearchRanks
from compmem.schema import Document
from compmem_research.metrics import ndcg_at
from compmem_research.training.dense_gate import DenseGateTraining, cache, train
from compmem_research.training.dense_gate.cache import fingerprint, load, save, states_of
from compmem_research.training.dense_gate.collection import Collection
from compmem_research.training.dense_gate.fitting import HeldOut, fit_first, fit_gate, judged_queries
from compmem_research.training.dense_gate.judging import FIRST_RANKING, judge, leave_one_out, table
from compmem_research.training.dense_gate.networks import list_loss, weights_of
from compmem_research.training.dense_gate.sources import Source, sources
from compmem_research.training.dense_gate.states import State, collect_states
from compmem_research.training.dense_gate.thresholds import refusing
from compmem_research.training.dense_gate.variants import later_of_few, of_few, weakened, without_relevant
from compmem_research.training.engine.settings import read_settings
from tests.dense_gate_training import NAMES, facts, paragraphs
from tests.hashing import HashEncoder
from tests.test_tasks import write

TINY = {"hidden": 8, "heads": 1, "epochs": 3, "question_epochs": 2, "docstrings": False, "synthetic": False, "steps": 2}


@pytest.fixture(scope="module")
def asked():
    return [a for hops in (1, 2) for a in collect_states(facts(f"group{hops}", hops), HashEncoder(), 2)]


def look_of(relevant, windows=None, dense=None, bm25=None, seed=0):
    rng = np.random.default_rng(seed)
    count = len(relevant)
    rows = np.repeat(np.arange(count), windows or [1] * count)
    own = rng.random((len(rows), len(FEATURES))).astype(np.float32)
    places = np.arange(1, count + 1)
    search_ranks = SearchRanks(
        np.array(places if dense is None else dense),
        np.array(places if bm25 is None else bm25),
        (1 / places).astype("f"),
    )
    return State(own, rows, np.arange(100, 100 + count), np.array(relevant, np.float32), search_ranks)


def test_looks_follow_what_is_relevant_and_hold_it_as_labels(asked):
    [direct] = [a for a in asked if a.id == "facts2/0/0" and a.style == "asked"]
    assert direct.chained
    assert len(direct.relevant) == 2
    assert set(direct.first_pass.blocks[direct.first_pass.relevant == 1].tolist()) <= direct.relevant
    first = direct.later[0]
    [read] = set(direct.first_pass.blocks.tolist()) - set(first.blocks.tolist())
    assert read in direct.relevant  # the first rollout reads what is relevant, and has it no longer before it
    memory = FEATURES.index("memory_lines")
    assert not direct.first_pass.own[:, memory].any()
    assert all(state.own[:, memory].all() for a in asked for state in a.later)  # nothing known: the first look serves
    assert set(direct.ranked) == {"dense", "bm25", "fused"}
    nothing = [a for a in asked if not a.relevant]
    assert nothing
    assert not any(a.first_pass.relevant.any() for a in nothing)


def test_styles_of_one_query_are_held_out_together(asked):
    halves = {}
    for a in asked:
        halves.setdefault(a.id, set()).add(a.half)
    assert all(len(half) == 1 for half in halves.values())
    assert set().union(*halves.values()) == {0, 1}
    assert len(halves) < len(asked)  # some are asked in two styles
    assert len({(a.id, a.style) for a in asked}) == len(asked)


def test_a_question_is_in_one_half_whichever_source_of_its_group_asks_it(asked):
    here = [a for a in asked if a.source.group == "group1"]
    there = dataclasses.replace(here[0].source, name="small")
    for a in here:
        again = dataclasses.replace(
            a, id=f"small/{a.id}", source=there, question=f" {a.question.upper()}", style="lower"
        )
        assert again.half == a.half
    assert {a.half for a in here} == {0, 1}


def test_a_list_loses_by_what_its_best_windows_say():
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0, 1.0], [0.0, 3.0, 0.5, 1.0, -1.0]])
    blocks = torch.tensor([0, 0, 1, 2, 3])  # the first block has two windows
    relevant, of, weights = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 1, 1]), torch.tensor([3.0, 1.0])
    expected = 0.0
    for head in logits:
        best = torch.stack([head[:2].max(), head[2], head[3], head[4]])
        alone = F.softplus(torch.stack([-best[0], best[1], best[2], best[3]]))
        ranked = -torch.log_softmax(best[:2], 0)[0]
        expected += (3 * (ranked + 0.125 * alone[:2].sum()) + 0.125 * alone[2:].sum()) / 4
    torch.testing.assert_close(list_loss(logits, blocks, relevant, of, weights, 0.125), expected)


def test_parts_count_as_the_square_root_of_their_size():
    weights = weights_of(["a"] * 4 + ["b"])
    assert sum(weights[:4]) == pytest.approx(2)
    assert weights[4] == pytest.approx(1)


def test_a_look_without_what_is_relevant_moves_the_others_up():
    first_pass = look_of([0, 1, 0, 0], windows=[1, 2, 2, 1], dense=[3, 1, 2, 0], bm25=[0, 2, 1, 3])
    left = without_relevant(first_pass)
    assert left.blocks.tolist() == [100, 102, 103]
    assert left.rows.tolist() == [0, 1, 1, 2]
    assert left.search_ranks.dense.tolist() == [2, 1, 0]
    assert left.search_ranks.bm25.tolist() == [0, 1, 2]
    assert np.array_equal(left.own, first_pass.own[[0, 3, 4, 5]])
    assert without_relevant(look_of([0, 0])) is None
    assert without_relevant(look_of([1, 1])) is None


def test_a_small_index_has_every_block_among_its_nearest():
    first_pass = look_of([1, *[0] * 30], dense=[0] * 31)
    for seed in range(20):
        few = of_few(first_pass, np.random.default_rng(seed), answered=True)
        assert few.relevant.sum() == 1
        assert len(few.blocks) <= 8
        assert sorted(few.search_ranks.dense.tolist()) == list(range(1, len(few.blocks) + 1))
        none = of_few(first_pass, np.random.default_rng(seed), answered=False)
        assert not none.relevant.any()
        assert len(none.blocks) >= 1


def test_a_later_pass_over_a_few_blocks_is_over_those_of_its_first_pass():
    first_pass, later = look_of([1, 1, *[0] * 30], dense=[0] * 32), look_of([1, *[0] * 30])
    later = dataclasses.replace(later, blocks=later.blocks + 1)  # the first block was read
    for seed in range(20):
        few, late = later_of_few(first_pass, later, np.random.default_rng(seed))
        assert few.relevant.sum() == 2
        assert late.relevant.sum() == 1
        assert set(late.blocks) == set(few.blocks) - {first_pass.blocks[0]}
        assert 3 <= len(few.blocks) <= 9
        assert sorted(few.search_ranks.dense.tolist()) == list(range(1, len(few.blocks) + 1))


def test_a_weak_search_is_weak_in_features_and_ranks_and_leaves_the_look_alone():
    first_pass = look_of([1, *[0] * 30])
    before = first_pass.own.copy()
    kinds = set()
    for seed in range(20):
        weak = weakened(first_pass, np.random.default_rng(seed))
        words, vectors = (weak.own[:, FEATURES.index(n)] for n in ("coverage", "question_chunk"))
        by_words = not np.array_equal(words, first_pass.own[:, FEATURES.index("coverage")])
        by_vectors = not np.array_equal(vectors, first_pass.own[:, FEATURES.index("question_chunk")])
        assert by_words != by_vectors
        kinds.add((by_words, not words.any()))
        if by_vectors:
            assert weak.search_ranks.dense[np.argmax(vectors)] == 1
        elif not words.any():
            assert not weak.search_ranks.bm25.any()
        assert np.isfinite(weak.first).all()
    assert kinds == {(False, False), (True, False), (True, True)}
    assert np.array_equal(first_pass.own, before)


def test_a_cache_gives_back_the_states_and_nothing_made_of_other_data(asked, tmp_path):
    source = asked[0].source
    own = [a for a in asked if a.source is source]
    path = tmp_path / "facts.safetensors"
    save(path, own, "these")
    again = load(path, source, "these")
    assert [(a.id, a.question, a.half, a.style, a.chained, a.relevant, dict(a.ranked)) for a in again] == [
        (a.id, a.question, a.half, a.style, a.chained, a.relevant, dict(a.ranked)) for a in own
    ]
    for before, after in zip(own, again, strict=True):
        for one, two in zip((before.first_pass, *before.later), (after.first_pass, *after.later), strict=True):
            assert np.array_equal(one.first, two.first)
            assert np.array_equal(one.relevant, two.relevant)
            assert np.array_equal(one.blocks, two.blocks)
    assert load(path, source, "others") is None
    path.write_bytes(path.read_bytes()[:100])
    assert load(path, source, "these") is None


def test_a_run_takes_up_the_sources_that_an_earlier_one_finished(tmp_path):
    made = []

    def collections():
        made.append(1)
        yield Collection(documents=[Document(id="0", text="Bel rents a house.")], queries=[])

    source = Source("one", "one", collections)
    settings = DenseGateTraining(out=tmp_path, cache=tmp_path / "states", **TINY)
    assert states_of(source, settings, HashEncoder()) == states_of(source, settings, HashEncoder()) == []
    assert len(made) == 1
    states_of(source, dataclasses.replace(settings, steps=3), HashEncoder())
    assert len(made) == 2
    data = write(tmp_path / "data.jsonl", {"a": 1})
    of_file = dataclasses.replace(source, files=(data,))
    before = fingerprint(of_file, settings, None)
    write(data, {"a": 2})
    assert fingerprint(of_file, settings, None) != before


def test_states_are_made_again_by_another_encoder_other_code_or_other_docstrings(tmp_path, monkeypatch):
    settings = DenseGateTraining(out=tmp_path, synthetic=False)
    [source] = sources(settings)
    own = fingerprint(source, settings, HashEncoder(dim=8))
    assert own == fingerprint(source, settings, HashEncoder(dim=8)) != fingerprint(source, settings, HashEncoder(dim=9))
    monkeypatch.setattr(np, "__version__", "0.1")
    [other] = sources(settings)
    assert fingerprint(other, settings, HashEncoder(dim=8)) != own
    monkeypatch.setattr(cache, "MADE_BY", {package: names[1:] for package, names in cache.MADE_BY.items()})
    cache.code.cache_clear()
    assert fingerprint(source, settings, HashEncoder(dim=8)) != own
    cache.code.cache_clear()


def test_leaving_a_group_out_leaves_out_all_that_is_made_of_it(asked, tmp_path, monkeypatch):
    taught = []
    from compmem_research.training.dense_gate import judging

    def fit(settings, rest, heads):
        taught.append({a.source.name for a in rest})
        torch.manual_seed(0)
        return Network(len(FIRST_FEATURES), 4)

    monkeypatch.setattr(judging, "fit_first", fit)
    both = Source("both", "group2", asked[0].source.collections, also_of=("group1",))
    more = [*asked, *(dataclasses.replace(a, source=both, part="both") for a in asked[:3])]
    held = HeldOut(
        judged=[(j, np.zeros(2)) for j in judged_queries(DenseGateTraining(out=tmp_path), more, fit(0, more, 0))]
    )
    taught.clear()
    left = leave_one_out(DenseGateTraining(out=tmp_path, question_epochs=2), more, GateHead(), held)
    rows = left.rows
    assert taught == [{"facts2"}, {"facts1"}]
    for refused in (0.0, 0.4):
        shares = left.refused(left.threshold(refused))
        assert set(shares) == {"group1", "group2"}
        assert all(share["answerable_refused"] <= refused for share in shares.values())
    assert any(share["answerable_refused"] > 0.4 for share in left.refused(left.threshold(0.4) + 1e-3).values())
    assert {(r["group"], r["part"]) for r in rows} == {("group1", "facts1"), ("group2", "facts2"), ("group2", "both")}
    printed = table(rows).splitlines()
    assert len(printed) == 2 + len(rows) + 1
    assert printed[-1].startswith("| mean of the rows |")
    assert all(line.count("|") == printed[0].count("|") for line in printed)


def test_a_first_look_is_judged_beside_the_rankings_that_learn_nothing(asked):
    network = Network(len(FIRST_FEATURES), 4)
    with torch.no_grad():  # its logit is the share of the query that a block covers
        for parameter in network.parameters():
            parameter.zero_()
        network.one[0, FIRST_FEATURES.index("coverage"), 0] = 1
        network.two[0, 0, 0] = network.out[0, 0, 0] = 1
    own = [a for a in asked if a.source.name == "facts1"]
    plain, restyled = judge(network, own)
    assert (plain["style"], restyled["style"]) == ("asked", "restyled")
    assert plain["queries"] == len(NAMES)  # not the one that nothing answers
    assert plain[FIRST_RANKING] == {"recall@5": 100.0, "ndcg@10": 100.0}
    assert plain["bm25"]["recall@5"] == 100.0
    assert ndcg_at([7, 1, 2], {1, 2}, 2) == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))


def test_cross_fitted_logits_calibrate_every_head(asked, tmp_path):
    settings = DenseGateTraining(out=tmp_path, **{**TINY, "epochs": 15, "question_epochs": 20})
    head, held = fit_gate(settings, asked)
    assert len(held.first) == len(asked)
    assert len(held.later) == sum(len(a.later) for a in asked)
    assert not any((head.calibration[n] == torch.tensor([1.0, 0.0])).all() for n in range(3))
    again = fit_first(settings, asked, heads=1)  # by the same seed
    assert all(torch.equal(again.state_dict()[name], value) for name, value in head.first.state_dict().items())
    first_pass = next(a for a in asked if a.id == "facts1/0/3").first_pass
    said = head.first_pass(first_pass.own, first_pass.search_ranks.take(first_pass.rows), first_pass.rows)
    assert first_pass.relevant[said.probabilities.argmax()] == 1
    with pytest.raises(ValueError, match="too few"):
        fit_gate(settings, asked[:1])


def test_the_threshold_of_what_answers_refuses_no_more_than_it_may():
    answerable = np.linspace(0, 1, 201).astype(np.float32)
    for share in (0.0, 0.03, 0.5):
        at = refusing(answerable, share)
        assert (answerable < at).mean() <= share
        assert (answerable <= at).mean() > share  # any larger one refuses more
    assert refusing(np.zeros(0, np.float32), 0.03) == 0.0


def test_the_command_trains_from_files_to_weights(tmp_path):
    lines = [
        {
            "id": f"q{i}", "dataset": "own", "question": f"Who insures the house that {n} rents?", "answer": f"Ora{i}",
            "paragraphs": paragraphs(
                (n, f"{n} rents {n} House.", True), (f"{n} House", f"{n} House is insured by Ora{i}.", True),
                (f"{n} Hill", f"{n} Hill is green and high.", False),
            ),
        }
        for i, n in enumerate(NAMES[:8])
    ]  # fmt: skip
    paired = [
        {"id": f"p{i}", "dataset": "own", "question": f"who lives on {n} Hill", "answer": "sheep" if i % 2 else "",
         "paragraphs": paragraphs((f"{n} Hill", f"Sheep number {i} live on {n} Hill.", i % 2 == 1))}
        for i, n in enumerate(NAMES)
    ]  # fmt: skip
    write(tmp_path / "hops.jsonl.gz", *lines)
    write(tmp_path / "pairs.jsonl", *paired)
    config = tmp_path / "gate.toml"
    config.write_text(
        'out = "out"\ncache = "states"\nmultihop = "hops.jsonl.gz"\nclapnq = "pairs.jsonl"\nhidden = 4\nheads = 1\n'
        "epochs = 1\nquestion_epochs = 1\ndocstrings = false\nsynthetic = false\nsteps = 2\nleave_one_out = true\n"
    )
    settings = read_settings(config, DenseGateTraining)
    report = train(settings, encoder=HashEncoder())
    assert report["queries"]["own"]["asked"] == 8
    assert report["queries"]["clapnq"]["unanswerable"] >= 8
    assert set(report["calibration"]) == {"first", "later", "more", "found"}
    assert [row["threshold"] for row in report["thresholds"]["read"]] == [0.05, 0.1, 0.2, 0.3, 0.5]
    assert {row["group"] for row in report["leave_one_out"]} == {"multihop", "clapnq"}
    assert json.loads((tmp_path / "out" / "dense_gate.json").read_text()) == json.loads(json.dumps(report))
    assert str(tmp_path) not in (tmp_path / "out" / "dense_gate.json").read_text()
    gate = GateHead.load(tmp_path / "out" / "dense_gate.safetensors")
    assert (gate.threshold, gate.more_threshold) == (0.2, 0.05)
    assert gate.found_threshold == report["found_threshold"]
    assert sorted(p.name for p in (tmp_path / "states").iterdir()) == [
        "clapnq.safetensors", "long.safetensors", "multihop.safetensors", "small.safetensors", "tiny.safetensors"
    ]  # fmt: skip


def test_settings_say_what_they_refuse(tmp_path):
    with pytest.raises(ValueError, match="refused=3"):
        DenseGateTraining(out=tmp_path, refused=3)
    with pytest.raises(ValueError, match="per_source=0"):
        DenseGateTraining(out=tmp_path, per_source=0)


def test_what_plain_search_says_is_added_to_what_is_learned(asked, tmp_path):
    settings = DenseGateTraining(out=tmp_path, **TINY)
    alone, both = (fit_first(dataclasses.replace(settings, plain=plain), asked, heads=1) for plain in (0.0, 2.0))
    first = asked[0].first_pass.first
    above = sum(first[:, FIRST_FEATURES.index(f"{signal}_standard")] for signal in ("question_chunk", "bm25"))
    added = (both(torch.from_numpy(first)) - alone(torch.from_numpy(first))).detach().numpy().squeeze(-1)
    assert np.allclose(added, 2 * 3 * above / 2, atol=1e-4)
