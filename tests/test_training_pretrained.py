"""A recipe on a pretrained base: what it exports, loads and refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from compmem import Document, IndexConfig, MemoryIndex, RuntimeConfig
from compmem.backbone import Backbone, size_on_disk
from compmem.cli import app
from compmem.errors import CheckpointError
from compmem.readers.latent_prompts import LatentPrompts
from compmem_research.training.embedded import run_all
from compmem_research.training.export import Export
from compmem_research.training.export import train as run_export
from compmem_research.training.text import TextPreparation
from compmem_research.training.text import train as prepare_text
from tests.conftest import make_model, make_tokenizer
from tests.replies import keep_short
from tests.training import hurry, write_set, write_texts

TEXTS = [list(b"Ida was born in Ulm, and Bo sings there in the evening."), list(b"Ox is a town.")]

RECIPE = {
    "embedded": '[[phases]]\nstage = "compressor"\nconfig = "one.toml"\n[[phases]]\nstage = "importance"\n'
    'config = "importance.toml"\n[[phases]]\nstage = "warmup"\n'
    'config = "two.toml"\n[[phases]]\nstage = "rl"\nconfig = "rl.toml"\n[[phases]]\nstage = "gate"\n'
    'config = "gate.toml"\n[[phases]]\nstage = "evaluate"\nconfig = "evaluate.toml"\n'
    '[[phases]]\nstage = "export"\nconfig = "three.toml"\n',
    "one": 'start = "base"\ntrain = ["memory"]\n[memory]\nown = []\nstates = "selected"\npruning = "kvzip-heads"\n'
    '[adapter]\nrank = 2\n'
    '[run]\nout = "one"\nsteps = 2\nbatch = 1\ndevice = "cpu"\nceiling_seconds = 0.01\n[mixture]\ndata = "data"\n'
    '[[mixture.components]]\nkind = "continue"\nsizes = [16]\ntokens = 32\n'
    '[[mixture.components]]\nkind = "multihop"\nfile = "set.jsonl"\nsizes = [32]\nitems = [2]\ntokens = 64\n',
    "importance": 'start = "one/backbone"\nout = "importance"\nfile = "set.jsonl"\npassages = 9\nheld = 2\n'
    'device = "cpu"\n',
    "two": 'start = "importance/backbone"\ntrain = ["reasoner", "memory"]\n[adapter]\nrank = 2\n[run]\nout = "two"\n'
    'steps = 2\nbatch = 1\ndevice = "cpu"\nceiling_seconds = 0.01\n[mixture]\n[[mixture.components]]\n'
    'kind = "multihop"\nfile = "set.jsonl"\nsizes = [32]\nitems = [2]\ntokens = 64\n[prompts]\nnothing = "-"\n'
    'update = "{question} {memory}"\noverwrite = "{question} {memory}"\nanswer = "{question} {memory}"\n',
    "rl": 'start = "two/backbone"\ntrain = ["reasoner"]\nheld = 1\n[run]\nout = "rl"\nsteps = 1\nbatch = 1\n'
    'device = "cpu"\nceiling_seconds = 0.01\n[questions]\nfile = "set.jsonl"\nchunk_tokens = 32\nchunks = 2\n'
    "[rollouts]\ngroup = 2\nmemory_tokens = 4\noverhead = 4\nanswer_tokens = 2\n",
    "gate": 'start = "rl/backbone"\ncontexts = 2\nheld = 1\n[adapter]\nrank = 2\n[run]\nout = "gate"\nsteps = 2\n'
    'batch = 1\ndevice = "cpu"\nceiling_seconds = 0.01\n[questions]\nfile = "set.jsonl"\nchunk_tokens = 32\n'
    "chunks = 2\n[rollouts]\nexit_gate = false\ngroup = 1\nmemory_tokens = 4\noverhead = 4\nanswer_tokens = 2\n",
    "evaluate": 'start = "gate/backbone"\nout = "e.json"\ntasks = ["questions"]\nfile = "set.jsonl"\nlengths = [80]\n'
    'questions = 1\nchunk_tokens = 32\nmemory_tokens = 4\nanswer_tokens = 2\nmax_steps = 2\ndevice = "cpu"\n',
    "three": 'start = "gate/backbone"\nout = "shipped"\ndtype = "float16"\ndata = "Trained on towns."\n'
    'logs = ["one", "two", "rl", "gate"]\n',
}  # fmt: skip


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A toy recipe that was run on a tiny pretrained model: the folders of the model and of the runs."""
    folder = tmp_path_factory.mktemp("recipe")
    for name, text in RECIPE.items():
        (folder / f"{name}.toml").write_text(text)
    base = folder / "stock"
    make_model("llama", max_position_embeddings=2048).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    texts = write_texts(folder / "texts.jsonl", 40)
    prepare_text(TextPreparation(texts=(texts,), out=folder / "data", tokenizer=str(base)))
    write_set(folder / "set.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        run_all(folder / "embedded.toml", folder, base=str(base))
    return base, folder


def other_model(folder, **changes):
    make_model("llama", max_position_embeddings=2048, **changes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


# --- the recipe and what is shipped


def test_a_recipe_on_a_pretrained_model_keeps_only_what_it_adds(trained):
    base, folder = trained
    for run in ("one", "two", "rl", "gate"):
        assert not (folder / run / "backbone" / "config.json").exists()
    backbone = Backbone.load(folder / "gate" / "backbone", device="cpu")
    assert backbone.base == str(base)
    assert set(backbone.adapters) == {"memory", "reasoner", "gate"}
    assert json.loads((folder / "e.json").read_text())["lines"][0]["questions"] == 1
    assert any(p.abs().sum() > 0 for n, p in backbone.parameters("memory").items() if n.endswith(".up"))
    tensors = load_file(folder / "shipped" / "compmem.safetensors")
    assert tensors.pop("importance").dtype == torch.float32
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    kept = json.loads((folder / "shipped" / "compmem.json").read_text())
    assert kept["base"] == "stock"
    assert size_on_disk(folder / "shipped") is None, "the stock model is nowhere"
    weights = [folder / "gate" / "backbone" / "compmem.safetensors", base / "model.safetensors"]
    assert size_on_disk(folder / "gate" / "backbone") == sum(file.stat().st_size for file in weights)
    card = (folder / "shipped" / "README.md").read_text()
    assert "Trained on towns." in card
    assert str(folder) not in card + json.dumps(kept), "no path of the machine is shipped"
    shipped = Backbone.load(folder / "shipped", device="cpu", base=base)
    assert shipped.fingerprint() == json.loads((folder / "shipped" / "training.json").read_text())["fingerprint"]
    for mine, theirs in zip(shipped.compress(TEXTS), backbone.compress(TEXTS), strict=True):
        torch.testing.assert_close(mine.values, theirs.values, atol=1e-2, rtol=1e-2)


def test_the_export_names_the_base_as_it_is_told(trained, tmp_path):
    base, folder = trained
    export = Export(start=folder / "gate" / "backbone", out=tmp_path / "out", base="maker/stock", logs=())
    report = run_export(export)
    assert json.loads((tmp_path / "out" / "compmem.json").read_text())["base"] == "maker/stock"
    assert "# Compressed memory for maker/stock" in (tmp_path / "out" / "README.md").read_text()
    assert Backbone.load(tmp_path / "out", device="cpu", base=base).fingerprint() == report["fingerprint"]


def test_the_prompts_of_what_was_added_are_used_and_not_those_beside_the_base(trained, tmp_path):
    base, folder = trained
    asked = "{question} {memory}"
    assert LatentPrompts.from_backbone(Backbone.load(folder / "two" / "backbone", device="cpu")).update == asked
    assert LatentPrompts.from_backbone(Backbone.load(folder / "shipped", device="cpu", base=base)).update == asked
    shutil.copytree(base, tmp_path / "base")
    LatentPrompts(update="other {question} {memory}").write(tmp_path / "base")
    loaded = Backbone.load(folder / "shipped", device="cpu", base=tmp_path / "base")
    assert LatentPrompts.from_backbone(loaded).update == asked


def test_another_base_is_refused(trained, tmp_path):
    base, folder = trained
    shipped = folder / "shipped"
    with pytest.raises(CheckpointError, match="another model"):
        Backbone.load(shipped, device="cpu", base=other_model(tmp_path / "weights", seed=5))
    with pytest.raises(CheckpointError, match="another model"):
        Backbone.load(shipped, device="cpu", base=other_model(tmp_path / "shape", num_hidden_layers=3))
    with pytest.raises(CheckpointError, match="'stock'"):
        Backbone.load(shipped, device="cpu")
    for dtype in ("bfloat16", "float16"):
        loaded = Backbone.load(shipped, device="cpu", base=base, dtype=dtype)
        assert loaded.decoder.embed_tokens.weight.dtype == getattr(torch, dtype)


def test_an_index_takes_the_base_of_its_backbone_from_the_runtime(trained, tmp_path, monkeypatch):
    keep_short(monkeypatch)
    base, folder = trained
    config = IndexConfig(memory="kv", backbone=str(folder / "shipped"), encoder=None, chunk_tokens=48)
    runtime = RuntimeConfig(backbone_base=str(base), device="cpu")
    with MemoryIndex.create(tmp_path / "kv.mem", config, runtime=runtime) as index:
        index.add([Document(id="a", text="Acme rents the house. The garden is large.")])
        written = index.answer("Who rents the house?").text
    with MemoryIndex.open(tmp_path / "kv.mem", runtime=runtime) as index:
        assert index.answer("Who rents the house?").text == written
    with MemoryIndex.open(tmp_path / "kv.mem") as index, pytest.raises(CheckpointError, match="'stock'"):
        index.answer("Who rents the house?")


def test_the_commands_take_the_base_of_a_backbone(trained, tmp_path, monkeypatch):
    keep_short(monkeypatch)
    base, folder = trained
    (tmp_path / "a.txt").write_text("Acme rents the house. The garden is large.")
    index, runner = str(tmp_path / "kv.mem"), CliRunner()
    add = ["add", index, str(tmp_path / "a.txt"), "--backbone", str(folder / "shipped"), "--chunk-tokens", "48"]
    refused = runner.invoke(app, add)
    assert refused.exit_code == 1
    assert "--backbone-base" in " ".join(refused.stderr.split())
    assert not (tmp_path / "kv.mem").exists()
    assert runner.invoke(app, [*add, "--backbone-base", str(base)]).exit_code == 0
    ask = ["ask", index, "Who rents the house?", "--json"]
    asked = runner.invoke(app, [*ask, "--backbone-base", str(base)])
    assert asked.exit_code == 0, asked.stderr
    assert json.loads(asked.stdout)["question"] == "Who rents the house?"
    assert runner.invoke(app, ask).exit_code == 1
    told = json.loads(runner.invoke(app, ["info", index, "--json"]).stdout)
    assert told["settings"]["kv_pruning"] == "kvzap", "what the backbone chose by, where nothing was said"


def test_another_quantisation_of_the_base_is_used_with_a_warning(trained, tmp_path, caplog):
    base, folder = trained
    shipped, model = folder / "shipped", Backbone.load(base, device="cpu").model
    with torch.no_grad():
        for weight in model.parameters():
            step = (weight.max() - weight.min()) / 63
            weight.copy_(torch.round(weight / step) * step)
    model.save_pretrained(tmp_path / "rounded")
    for file in base.glob("token*"):
        (tmp_path / "rounded" / file.name).write_bytes(file.read_bytes())
    loaded = Backbone.load(shipped, device="cpu", base=tmp_path / "rounded")
    assert "as another quantisation: answers may differ" in caplog.text
    assert loaded.fingerprint() != Backbone.load(shipped, device="cpu", base=base).fingerprint()
    tensors = load_file(shipped / "compmem.safetensors")
    sample = tensors.pop("base_sample")
    for number, spoilt in enumerate(({}, {"base_sample": sample * torch.nan}, {"base_sample": sample[:-1]})):
        folder = tmp_path / str(number)
        shutil.copytree(shipped, folder)
        save_file(tensors | spoilt, folder / "compmem.safetensors")
        with pytest.raises(CheckpointError, match="another model"):
            Backbone.load(folder, device="cpu", base=tmp_path / "rounded")


def test_a_recipe_goes_on_where_it_stopped_also_on_another_machine(trained, tmp_path):
    base, folder = trained
    log = (folder / "one" / "log.jsonl").read_text()
    [again] = run_all(folder / "embedded.toml", folder, 1, base=str(base))
    assert again["steps"] == 2
    trained_again = (folder / "one" / "log.jsonl").read_text()[len(log) :]
    assert '"gradient_norm"' not in trained_again, "the two steps were done"
    there, moved = tmp_path / "there", tmp_path / "moved"
    (there / "carried").mkdir(parents=True)
    for file in (folder / "carried").iterdir():
        (there / "carried" / file.name).write_bytes(file.read_bytes())
    (there / "set.jsonl").write_bytes((folder / "set.jsonl").read_bytes())
    other_model(moved)
    run_all(folder / "embedded.toml", there, 2, base=str(moved))
    shutil.rmtree(there / "importance")  # only what is carried goes to the next machine
    [report] = run_all(folder / "embedded.toml", there, 3, base=str(moved))
    assert report["stage"] == "warmup"
    trained = Backbone.load(there / "two" / "backbone", device="cpu")
    assert (trained.base, trained.memory.pruning) == (str(moved), "kvzap")
