"""The command over KV memory: made by a backbone that is given, asked by the default roles."""

import pytest

from tests.test_cli import DOCUMENTS, done, failed, run


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text)
    return folder


def test_kv_memory_is_made_and_read_by_a_backbone_in_a_folder(docs, tmp_path, saved_model):
    model = saved_model("qwen2")
    made = done("add", tmp_path / "kv", docs, "--backbone", model, "--ratio", 2, "--kv", "int8")
    facts = done("info", tmp_path / "kv")
    assert facts["documents"] == made["added"] == 4 and facts["kv_bytes"] > 0
    assert (facts["settings"]["memory"], facts["settings"]["ratio"]) == ("kv", 2)
    question = "Who pays the insurance?"
    assert done("ask", tmp_path / "kv", question, "--max-steps", 1, "--threshold", 0)["usage"]["model_calls"] == 1
    quoted = done("ask", tmp_path / "kv", question, "--reader", "extractive")
    assert quoted["usage"]["model_calls"] == 0
    assert "made with ratio=2, not 4" in failed(1, "add", tmp_path / "kv", docs, "--ratio", 4)


@pytest.mark.parametrize(
    ("stock", "roles"), [(True, ["--reader", "extractive", "--writer", "latent"]), (False, ["--reader", "latent"])]
)
def test_by_default_only_a_backbone_that_was_trained_for_the_loop_reads(stock, roles, docs, tmp_path, saved_model):
    done("add", tmp_path / "kv", docs, "--backbone", saved_model("qwen2") if stock else "embedded")

    def said(*options):
        answer = done("ask", tmp_path / "kv", "Who owns Mill House?", "--max-steps", 2, *options)
        return answer["answer"], answer["working_memory"], answer["usage"]["model_calls"]

    assert said() == said(*roles)
    written = said("--writer", "latent")
    assert written == said("--reader", "extractive", "--writer", "latent")
    assert written != said("--reader", "latent")


def test_a_model_that_fails_leaves_no_index_so_the_corrected_command_works(docs, tmp_path, saved_model):
    to, absent = tmp_path / "kv", tmp_path / "absent"
    assert "absent" in run("add", to, docs, "--backbone", absent).stderr
    assert "absent" in run("add", to, docs, "--encoder", absent).stderr
    assert not to.exists()
    assert done("add", to, docs, "--backbone", saved_model("qwen2"), "--ratio", 2)["added"] == 4
