"""Models named in an index or a checkpoint are looked up only on this machine, unless the caller allows more."""

import json
import socket

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from typer.testing import CliRunner

from compmem import CheckpointError, IncompatibleStoreError, IndexConfig, MemoryIndex
from compmem.backbone import Backbone
from compmem.backbone.stock import find_model
from compmem.cli import app
from compmem.naming import DEFAULT_ENCODER, SMOLLM2, is_safe_name


def dense(path, **given):
    return MemoryIndex.open(path / "dense", **given).encoder


def kv(path, **given):
    return MemoryIndex.open(path / "kv", **given).backbone


def base(path, **given):
    return Backbone.load(path / "checkpoint", device="cpu", **given)


@pytest.fixture
def named(tmp_path):
    """Two indexes and a checkpoint with models named by somebody else."""
    MemoryIndex.create(tmp_path / "dense", IndexConfig(encoder="stranger/model"), check_models=False).close()
    settings = IndexConfig(memory="kv", encoder=None, backbone="stranger/model")
    MemoryIndex.create(tmp_path / "kv", settings).close()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/compmem.json").write_text(json.dumps({"format": 1, "base": "stranger/model"}))
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """The models that are requested from an empty hub."""
    found = []

    def snapshot_download(name, *, local_files_only=False, **_):
        if not local_files_only:
            found.append(name)
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return found


@pytest.mark.parametrize("make", [MemoryIndex.create, MemoryIndex.open_or_create])
@pytest.mark.parametrize("shards", [None, 2])
def test_an_index_with_an_encoder_that_cannot_be_loaded_is_not_made(asked, tmp_path, make, shards):
    path, config = tmp_path / "index", IndexConfig(encoder="no/such-model")
    with pytest.raises(CheckpointError, match="'no/such-model' is neither a folder nor a model to download"):
        make(path, config, shards=shards)
    assert asked == ["no/such-model"]
    assert not path.exists()


def test_the_default_encoder_is_not_loaded_before_it_is_needed(monkeypatch):
    loaded = []
    monkeypatch.setattr("compmem.index_models.load_encoder", lambda name, *_, **__: loaded.append(name))
    for name in (DEFAULT_ENCODER, f"sentence-transformers/{DEFAULT_ENCODER}"):
        MemoryIndex.create(config=IndexConfig(encoder=name)).close()
    assert loaded == []


@pytest.mark.parametrize("load", [dense, kv, base])
def test_a_name_from_a_file_reaches_no_network(named, load, monkeypatch):
    tried = []

    def refuse(*address):
        tried.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(CheckpointError, match="allow_download=True"):
        load(named)
    assert tried == []


@pytest.mark.parametrize(
    ("load", "given"),
    [
        (dense, {"allow_download": True}), (dense, {"encoder": "stranger/model"}),
        (kv, {"allow_download": True}), (kv, {"backbone": "stranger/model"}), (base, {"allow_download": True}),
    ],
)  # fmt: skip
def test_a_model_that_the_caller_names_or_allows_is_asked_for(named, asked, load, given):
    with pytest.raises(CheckpointError):
        load(named, **given)
    assert asked == ["stranger/model"]


@pytest.mark.parametrize(
    ("command", "fetched"),
    [
        (("recall", "INDEX", "who?"), []), (("recall", "INDEX", "who?", "--allow-download"), ["stranger/model"]),
        (("ask", "INDEX", "who?"), []), (("ask", "INDEX", "who?", "--allow-download"), ["stranger/model"]),
        (("add", "INDEX", "a.txt"), []), (("add", "INDEX", "a.txt", "--allow-download"), ["stranger/model"]),
        (("add", "INDEX", "a.txt", "--encoder", "stranger/model"), ["stranger/model"]),
    ],
)  # fmt: skip
def test_the_command_fetches_where_it_is_allowed_to(named, asked, monkeypatch, command, fetched):
    monkeypatch.chdir(named)
    (named / "a.txt").write_text("A text.")
    done = CliRunner().invoke(app, ["dense" if part == "INDEX" else part for part in command])
    assert (done.exit_code, asked) == (1, fetched)


def test_a_folder_in_the_working_folder_is_not_taken_for_what_ships(tmp_path, monkeypatch):
    for name in (DEFAULT_ENCODER, "embedded"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    with MemoryIndex.create("m") as made:
        assert (made.config.encoder, made.encoder.dim) == (DEFAULT_ENCODER, 384)
    for given in ({}, {"encoder": DEFAULT_ENCODER}):
        with MemoryIndex.open("m", **given) as opened:
            assert opened.encoder.dim == 384
    with MemoryIndex.create("e", IndexConfig(memory="kv", encoder=None, backbone="embedded")) as kept:
        assert kept.config.backbone == "embedded"
    with MemoryIndex.create("folder", IndexConfig(encoder=f"./{DEFAULT_ENCODER}"), check_models=False) as own:
        assert own.config.encoder == str(tmp_path / DEFAULT_ENCODER)


def test_shipped_adapters_are_found_by_name_without_their_model(monkeypatch):
    place = find_model(SMOLLM2)
    kept = json.loads((place / "compmem.json").read_text())
    assert (kept["base"], kept["steps_trained"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", False)
    assert sum(file.stat().st_size for file in place.iterdir()) < 20_000_000
    asked = []

    def fetched(name, **options):
        asked.append((name, options["local_files_only"]))
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    with pytest.raises(CheckpointError, match="SmolLM2-135M-Instruct"):
        Backbone.load(SMOLLM2)
    with pytest.raises(CheckpointError, match="SmolLM2-135M-Instruct"):
        Backbone.load(SMOLLM2, allow_download=False)
    assert asked == [(kept["base"], False), (kept["base"], True)], "its base is fetched unless that is forbidden"


def test_a_relative_folder_that_an_index_names_is_refused(named, monkeypatch):
    (named / "stranger/model").mkdir(parents=True)
    monkeypatch.chdir(named)
    with pytest.raises(IncompatibleStoreError, match="not an absolute path"):
        dense(named)


@pytest.mark.parametrize("name", ["/proc/self/cwd/stranger/model", "/proc/../proc/self/cwd/m", "/dev/fd/3/m"])
def test_a_name_that_leads_to_the_working_folder_is_no_absolute_path(name):
    assert not is_safe_name(name)
