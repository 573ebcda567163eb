"""The embedded backbone's training: phases from weights alone, moved files, measurements, export."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compmem.backbone import Backbone
from compmem.config import LoopConfig
from compmem.errors import CheckpointError
from compmem.readers.latent_prompts import LatentPrompts
from compmem.schema import Reading, WorkingMemory
from compmem_research.training.data.sources import chunks_of
from compmem_research.training.embedded import Embedded, run_all
from compmem_research.training.engine.packing import pack, unpack
from compmem_research.training.engine.settings import read_settings
from compmem_research.training.evaluate import Evaluation, answer_all, config_of, train
from compmem_research.training.export import Export
from compmem_research.training.export import train as export
from compmem_research.training.rollouts.loops import Loop
from compmem_research.training.stages import load_stage
from tests.training import TEXTS, prepare, world

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "core" / "compmem_research" / "training" / "configs"

PHASES = {
    "embedded": '[[phases]]\nstage = "lm"\nconfig = "one.toml"\n[[phases]]\nstage = "compressor"\nconfig = "two.toml"\n'
    '[[phases]]\nstage = "export"\nconfig = "three.toml"\n',
    "one": 'data = "data"\n[decoder]\nhidden = 32\nlayers = 2\nheads = 2\nkv_heads = 1\nhead_dim = 16\ninner = 48\n'
    'context = 2048\n[memory]\nwindow = 64\n[run]\nout = "one"\nsteps = 2\nbatch = 1\ndevice = "cpu"\n'
    'ceiling_seconds = 0.01\n[mixture]\n[[mixture.components]]\nkind = "random"\nsizes = [8]\ntokens = 64\n',
    "two": 'start = "one/backbone"\ntrain = ["base", "memory"]\n[run]\nout = "two"\nsteps = 2\nbatch = 1\n'
    'device = "cpu"\nceiling_seconds = 0.01\n[mixture]\n[[mixture.components]]\nkind = "random"\nsizes = [8]\n'
    "tokens = 64\n",
    "three": 'start = "two/backbone"\nout = "export"\nlogs = ["one", "two"]\n',
}


@pytest.fixture(autouse=True)
def short_replies(monkeypatch):
    """Untrained weights write as much as they may."""
    monkeypatch.setattr("compmem_research.training.evaluate.TAGS", 8)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    for name, text in PHASES.items():
        (folder / f"{name}.toml").write_text(text)
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def trained(recipe):
    return run_all(recipe / "embedded.toml", recipe), recipe


def test_all_phases_run_one_after_the_other_and_end_in_what_ships(trained):
    reports, folder = trained
    assert [r["phase"] for r in reports] == ["one", "two", "three"]
    shipped = Backbone.load(folder / "export", device="cpu")
    assert json.loads((folder / "export" / "config.json").read_text())["dtype"] == "bfloat16"
    assert shipped.memory.window == 64
    told = json.loads((folder / "export" / "training.json").read_text())
    assert [run["stage"] for run in told["runs"]] == ["lm", "compressor"]
    assert told["runs"][0]["steps"] == 2
    assert told["runs"][0]["tokens_per_second"] > 0
    assert told["fingerprint"] == shipped.fingerprint()
    assert LatentPrompts.from_backbone(shipped) == LatentPrompts()


def test_a_phase_on_another_machine_starts_from_what_was_carried(trained, recipe, tmp_path):
    run_all(recipe / "embedded.toml", recipe, 1)
    carried = recipe / "carried"
    assert len(list(carried.iterdir())) <= 8
    assert all(file.stat().st_size < 16_000_000 for file in carried.iterdir())
    (tmp_path / "carried").mkdir()
    for file in carried.glob("weights-*"):
        (tmp_path / "carried" / file.name).write_bytes(file.read_bytes())
    [report] = run_all(recipe / "embedded.toml", tmp_path, 2)
    assert report["stage"] == "compressor"
    here, there = (Backbone.load(f / "two" / "backbone", device="cpu") for f in (recipe, tmp_path))
    for name, parameter in here.decoder.named_parameters():
        # Carried in bfloat16, two steps later.
        torch.testing.assert_close(dict(there.decoder.named_parameters())[name], parameter, atol=0.02, rtol=0.02)


def test_what_is_carried_is_whole_or_refused(trained, recipe, tmp_path):
    start = recipe / "one" / "backbone"
    files = pack(start, tmp_path / "c", name="one", dtype=torch.float32, limit=40_000)
    assert len(files) > 1
    unpack(tmp_path / "c", tmp_path / "b", name="one")
    assert Backbone.load(tmp_path / "b", device="cpu").fingerprint() == Backbone.load(start, device="cpu").fingerprint()
    files[-1].unlink()
    with pytest.raises(CheckpointError, match="files of weights"):
        unpack(tmp_path / "c", tmp_path / "d", name="one")
    with pytest.raises(CheckpointError, match="over 6"):
        pack(start, tmp_path / "e", name="one", dtype=torch.float32, limit=2_000)
    with pytest.raises(CheckpointError, match="has no weights"):
        pack(tmp_path / "c" / "none", tmp_path / "e", name="one", dtype=torch.float32)
    evil = {"name": "one", "texts": json.dumps({"../config.json": "{}"})}
    save_file({"model.safetensors/x": torch.ones(1)}, tmp_path / "weights-1-of-1.safetensors", metadata=evil)
    with pytest.raises(CheckpointError, match="is not a file of a backbone"):
        unpack(tmp_path, tmp_path / "f", name="one")
    assert not (tmp_path / "config.json").exists()


def test_a_phase_does_not_start_from_what_another_one_left(trained, recipe, tmp_path):
    carried = tmp_path / "carried"
    pack(recipe / "two" / "backbone", carried, name="two/backbone", dtype=torch.float32)
    with pytest.raises(CheckpointError, match="has the weights of 'two/backbone', not those of 'one/backbone'"):
        run_all(recipe / "embedded.toml", tmp_path, 2)
    assert not (tmp_path / "one").exists()


def test_phases_that_are_not_there_are_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="phase=4: there are 1 to 3"):
        run_all(recipe / "embedded.toml", tmp_path, 4)
    with pytest.raises(CheckpointError, match="has only 0 files of weights"):
        run_all(recipe / "embedded.toml", tmp_path, 2)
    (tmp_path / "e.toml").write_text("phases = []\n")
    with pytest.raises(ValueError, match="nothing to do"):
        read_settings(tmp_path / "e.toml", Embedded)


def test_what_is_too_large_to_ship_is_refused(trained, recipe, tmp_path):
    with pytest.raises(CheckpointError, match="are allowed"):
        export(Export(start=recipe / "two" / "backbone", out=tmp_path, most_bytes=1000))
    with pytest.raises(CheckpointError, match="has no log"):
        export(Export(start=recipe / "two" / "backbone", out=tmp_path, logs=(tmp_path,)))


@pytest.mark.slow
def test_the_recipe_needs_only_what_training_needs(recipe, tmp_path):
    blocked = ("pydantic", "faiss", "typer", "matplotlib", "snowballstemmer", "Stemmer", "sentence_transformers")
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from compmem_research.training.embedded import main
main(["--config", {str(recipe / "embedded.toml")!r}, "--out", {str(tmp_path)!r}, "--phase", "1"])
import compmem_research.training.evaluate, compmem_research.training.warmup, compmem_research.training.export
"""
    (tmp_path / "data").symlink_to(recipe / "data")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(ROOT / "core"), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)[0]["phase"] == "one"
    assert "no plot" in done.stderr


def _phases(recipe):
    phases = tomllib.loads((CONFIGS / recipe / "embedded.toml").read_text())["phases"]
    return [(recipe, p["stage"], p["config"]) for p in [{"stage": "text", "config": "text.toml"}, *phases]]


@pytest.mark.parametrize(
    ("name", "stage", "file"),
    [
        *_phases("embedded"), *_phases("smollm2-135m"),
        ("smollm2-135m", "rl", "answer_rl.toml"),
    ],
)  # fmt: skip
def test_the_recipes_that_are_ready_can_be_read(name, stage, file, tmp_path):
    kind, _ = load_stage(stage)
    assert read_settings(CONFIGS / name / file, kind, base=tmp_path)


@pytest.mark.parametrize("name", ["embedded", "smollm2-135m"])
def test_each_phase_starts_from_the_one_before(name, tmp_path):
    before = None
    for _, stage, file in _phases(name)[1:]:
        values = read_settings(CONFIGS / name / file, load_stage(stage)[0], base=tmp_path)
        assert before is None or values.start == before / "backbone"
        before = values.run.out if hasattr(values, "run") else values.out if stage == "importance" else before
    assert [log.name for log in values.logs] == [
        read_settings(CONFIGS / name / f, load_stage(s)[0], base=tmp_path).run.out.name
        for _, s, f in _phases(name)[1:]
        if s not in ("importance", "evaluate", "export")
    ]


def test_a_phase_trains_no_longer_than_it_is_told(recipe, tmp_path):
    """One second is too short for all steps; the logs of earlier phases are moved with the weights."""
    for name, text in PHASES.items():
        (tmp_path / f"{name}.toml").write_text(text.replace("steps = 2\n", "steps = 1000000\nlog_every = 1\n"))
    (tmp_path / "data").symlink_to(recipe / "data")
    [first] = run_all(tmp_path / "embedded.toml", tmp_path, 1, minutes=0.02)
    assert first["seconds"] < 60
    (there := tmp_path / "there").mkdir()
    (tmp_path / "carried").rename(there / "carried")
    run_all(tmp_path / "embedded.toml", there, 2, minutes=0.02)
    run_all(tmp_path / "embedded.toml", there, 3)
    told = json.loads((there / "export" / "training.json").read_text())
    assert [run["stage"] for run in told["runs"]] == ["lm", "compressor"]


# --- the evaluation


def test_an_evaluation_writes_its_figures_and_goes_on_where_it_stopped(trained, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("compmem_research.training.data.sources.PASSAGES", 60)
    made = {
        "start": recipe / "two" / "backbone", "out": tmp_path / "e.json", "lengths": (400,), "questions": 3,
        "at_once": 2, "chunk_tokens": 64, "memory_tokens": 8, "answer_tokens": 4, "device": "cpu", "max_steps": 3,
        "data": recipe / "data",
    }  # fmt: skip
    train(Evaluation(**made, tasks=("world-2hop",)))
    report = train(Evaluation(**made, tasks=("world-2hop", "niah_single_1"), systems=("compmem", "gru-mem")))
    told = [(line["task"], line["system"]) for line in report["lines"]]
    assert told == [(task, system) for task in ("world-2hop", "niah_single_1") for system in ("compmem", "gru-mem")]
    kept = json.loads((tmp_path / "e.json").read_text())
    assert kept["lines"] == report["lines"]
    scan = report["lines"][1]
    assert scan["blocks_read"] == pytest.approx(scan["blocks"], abs=0.06)  # rounded to one digit and to two
    assert scan["blocks"] > 5
    assert report["lines"][0]["blocks_read"] == 3
    [line] = train(Evaluation(**{**made, "out": tmp_path / "u.json"}, tasks=("world-1hop-unanswerable",)))["lines"]
    assert line["accuracy"] == 100  # it knows nothing, and finds nothing
    with pytest.raises(ValueError, match="tasks has 'world-9hop'"):
        Evaluation(start=tmp_path, out=tmp_path, tasks=("world-9hop",))


def test_an_evaluation_continues_only_what_is_its_own_and_whole(trained, recipe, tmp_path, monkeypatch):
    out = tmp_path / "e.json"
    made = {
        "start": recipe / "two" / "backbone", "out": out, "tasks": ("world-1hop",), "lengths": (300,), "questions": 2,
        "chunk_tokens": 64, "memory_tokens": 8, "answer_tokens": 4, "device": "cpu", "max_steps": 2,
    }  # fmt: skip
    [line] = train(Evaluation(**made))["lines"]
    before = out.read_text()
    for change in ({"seed": 1}, {"ratio": 2}, {"questions": 3}, {"split": "train"}, {"max_steps": 1}):
        [(name, value)] = change.items()
        with pytest.raises(ValueError, match=rf"e.json' was measured with .*{name}=.*, not {value!r}"):
            train(Evaluation(**made | change))
    with pytest.raises(ValueError, match="questions=2, not 3; seed=0, not 1: choose"):
        train(Evaluation(**made | {"questions": 3, "seed": 1}))
    retrained = tmp_path / "retrained"
    backbone = Backbone.load(recipe / "two" / "backbone", device="cpu")
    with torch.no_grad():
        backbone.decoder.embed_tokens.weight.add_(1)
    backbone.save(retrained)
    with pytest.raises(ValueError, match=r"fingerprint='.*', not '.*'; start='.*two/backbone', not '.*retrained'"):
        train(Evaluation(**made | {"start": retrained}))
    assert out.read_text() == before
    backbone = Backbone.load(recipe / "two" / "backbone", device="cpu")
    backbone.threshold = 0.9
    backbone.save(retrained)
    with pytest.raises(ValueError, match=r"retrained'; weights='.*', not '.*'"):
        train(Evaluation(**made | {"start": retrained}))

    write = Path.write_text

    def killed(file, text, **options):
        write(file, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        train(Evaluation(**made | {"tasks": ("world-1hop", "world-2hop")}))
    monkeypatch.undo()
    assert train(Evaluation(**made))["lines"] == json.loads(out.read_text())["lines"] == [line]
    out.write_text(before[: len(before) // 2])
    with pytest.raises(ValueError, match=r"e.json' is no result of this measurement: choose another place"):
        train(Evaluation(**made))


def test_an_evaluation_asks_the_questions_of_a_set(trained, recipe, tmp_path):
    file = tmp_path / "set.jsonl"
    towns = ("Ulm", "Kiel", "Bonn")
    file.write_text("".join(
        json.dumps({
            "id": f"q{n}", "dataset": "own", "question": f"Where was Ida{n} born?", "answer": town, "answers": [town],
            "paragraphs": [
                {"title": f"Ida{n}", "sentences": [f"Ida{n} was born in {town}. " * 4], "supporting": [0]},
                {"title": f"Bo{n}", "sentences": ["Bo sings. " * 20], "supporting": []},
            ],
        }) + "\n"
        for n, town in enumerate(towns)
    ))  # fmt: skip
    made = {"start": recipe / "two" / "backbone", "out": tmp_path / "e.json", "lengths": (200,), "chunk_tokens": 64,
            "memory_tokens": 8, "answer_tokens": 4, "device": "cpu", "questions": 2, "max_steps": 2}  # fmt: skip
    train(Evaluation(**made, tasks=("world-1hop",)))
    _, line = train(Evaluation(**made, tasks=("world-1hop", "questions"), file=file))["lines"]
    assert (line["task"], line["questions"]) == ("questions", 2)
    assert line["blocks"] > 2
    with pytest.raises(
        ValueError, match=r"file='.*set.jsonl', not '.*other.jsonl'; file_digest='.*', not None: choose"
    ):
        train(Evaluation(**made, tasks=("questions",), file=tmp_path / "other.jsonl"))
    file.write_text(file.read_text().replace("Bo sings", "Bo reads"))
    with pytest.raises(ValueError, match=r"measured with file_digest='.*', not '.*': choose"):
        train(Evaluation(**made, tasks=("questions",), file=file))
    with pytest.raises(ValueError, match="the task 'questions' needs a file"):
        Evaluation(**made, tasks=("questions",))


def test_a_gate_may_be_blind_to_the_working_memory(trained, recipe, monkeypatch):
    backbone = Backbone.load(recipe / "two" / "backbone", device="cpu")
    backbone.add_gate()
    seen: dict[str, set[str]] = {"learned": set(), "question": set()}

    [sample] = [world(TEXTS, [TEXTS[2], TEXTS[0]])]
    chunks = chunks_of(sample, backbone, 64)
    with torch.inference_mode():
        states = backbone.compress([backbone.encode(c.text) for c in chunks])
    for kind, memories in seen.items():

        def probabilities(self, memory, blocks, memories=memories):
            memories.add(memory)
            return [1.0] * len(blocks)

        monkeypatch.setattr("compmem.gate.BackboneGate.probabilities", probabilities)
        config = LoopConfig(candidates="all", gate=kind, reader_threshold=None)
        loop = Loop(backbone, sample.question, chunks, states, config)
        loop.advance()
        loop.advance(Reading(memory=WorkingMemory(text="Ox, maker: Ida."), update=True, exit=False))
    assert seen == {"learned": {"", "Ox, maker: Ida."}, "question": {""}}


def test_loops_together_answer_as_loops_alone(trained, recipe):
    backbone = Backbone.load(recipe / "two" / "backbone", device="cpu")
    settings = Evaluation(start=recipe, out=recipe, memory_tokens=8, answer_tokens=6)

    samples = [world(TEXTS, [TEXTS[2], TEXTS[0]]), world(TEXTS[1:], [TEXTS[2]], question="Who made Ox?")]
    chunks = [chunks_of(s, backbone, 64) for s in samples]
    with torch.inference_mode():
        states = [backbone.compress([backbone.encode(c.text) for c in own]) for own in chunks]
    questions = [s.question for s in samples]
    for system in ("compmem", "memagent"):
        config = config_of(system, settings)
        together = answer_all(settings, backbone, config, questions, chunks, states)
        alone = [
            answer_all(settings, backbone, config, [q], [c], [k])[0]
            for q, c, k in zip(questions, chunks, states, strict=True)
        ]
        assert [told(loop) for loop in together] == [told(loop) for loop in alone]


def told(loop):
    return loop.steps, loop.memory, loop.answer
