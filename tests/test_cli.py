"""The command: every sub-command on a small real index, JSON, exit codes, one-line errors, a chat endpoint."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compmem import Document, IndexConfig, MemoryIndex, __version__
from compmem.cli import app
from tests.hashing import HashEncoder

DOCUMENTS = {
    "lease.md": "# Lease\n\nAcme rents Mill House for ten years. The rent is due in May.\n",
    "houses.md": "# Mill House\n\nMill House belongs to Dora Finch. It has three floors and a red roof.\n",
    "people.txt": "Dora Finch was born in Leeds. She collects clocks.\n",
    "year.jsonl": '{"id": "old", "title": "Note", "text": "The mill burned in 1920.", "metadata": {"year": 1920}}\n',
}


def run(*args, stdin=None):
    return CliRunner().invoke(app, [str(a) for a in args], input=stdin)


def done(*args, stdin=None):
    """The JSON that a command prints when it succeeds."""
    result = run(*args, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def failed(code, *args, stdin=None):
    """The error lines of a command that fails with this code."""
    result = run(*args, stdin=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "docs"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def index(docs):
    path = docs.parent / "small.mem"
    added = done("add", path, docs)
    assert (added["added"], added["unchanged"], added["documents"], added["errors"]) == (4, 0, 4, [])
    return path


def test_known_documents_cost_nothing_and_changed_ones_replace(docs, tmp_path):
    path = tmp_path / "a.mem"
    assert done("add", path, docs / "lease.md")["added"] == 1
    again = done("add", path, docs / "lease.md")
    assert (again["added"], again["unchanged"]) == (0, 1)
    changed = tmp_path / "lease.md"
    changed.write_text("Acme left.")
    result = run("add", path, changed, docs / "people.txt")
    assert result.exit_code == 0
    assert re.match(r"1 added or changed, 1 unchanged|2 added or changed, 0 unchanged", result.stdout)


def test_an_index_that_another_process_makes_meanwhile_is_added_to(docs, tmp_path, monkeypatch):
    create = MemoryIndex.create

    def second(path, *args, **options):
        create(path, IndexConfig()).close()
        return create(path, *args, **options)

    monkeypatch.setattr(MemoryIndex, "create", second)
    assert done("add", tmp_path / "a.mem", docs, "--vectors", "int8")["documents"] == 4
    assert "made with vectors='int8', not 'fp16'" in failed(1, "add", tmp_path / "b", docs, "--vectors", "fp16")


def test_documents_come_from_standard_input(tmp_path):
    lines = "".join(json.dumps({"id": i, "text": f"Note {i} is short."}) + "\n" for i in range(3))
    assert done("add", tmp_path / "a.mem", "-", "--stdin-format", "jsonl", stdin=lines)["added"] == 3
    assert done("add", tmp_path / "b.mem", "-", stdin="Just a text.")["documents"] == 1


def test_what_cannot_be_read_is_told_and_the_rest_added(docs, tmp_path):
    result = run("add", tmp_path / "a.mem", docs / "lease.md", tmp_path / "missing.txt", tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["added"] == 1
    assert result.stderr.splitlines() == [
        f"error: {tmp_path}/missing.txt: no such file or folder",
        f"error: {tmp_path}: contains no file to read",
    ]


def test_no_index_is_made_of_nothing(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "empty").mkdir()
    for source, message in {
        "missing.txt": "no such file", "empty": "contains no file", "pictures": "nothing to add: no file with text in",
    }.items():  # fmt: skip
        result = run("add", tmp_path / "a.mem", tmp_path / source, "--json")
        assert (result.exit_code, json.loads(result.stdout)["added"]) == (1, 0)
        assert message in result.stderr
    assert not (tmp_path / "a.mem").exists()
    run("add", tmp_path / "empty", tmp_path / "pictures")
    assert not list((tmp_path / "empty").iterdir())


def test_files_of_the_same_name_are_kept_apart_and_found_by_their_paths(tmp_path, monkeypatch, caplog):
    path = tmp_path / "work" / "a.mem"
    path.parent.mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "docs").mkdir(parents=True)
        (tmp_path / folder / "docs" / "x.txt").write_text(f"This is the text of {folder}.")
    monkeypatch.chdir(path.parent)
    assert done("add", "a.mem", "../a/docs")["documents"] == 1
    assert done("add", "a.mem", "../b/docs")["documents"] == 2
    monkeypatch.chdir(tmp_path)
    again = done("add", path, "a/docs/x.txt", "b")
    assert (again["added"], again["unchanged"], again["documents"]) == (0, 2, 2)
    (tmp_path / "old.jsonl").write_text(
        '{"id": "1", "text": "One."}\n{"text": "x", "metadata": {"n": NaN}}\n'
        '{"id": "2", "text": "Two.", "metadata": {"path": ["x"]}}\n'
    )
    result = run("add", path, "old.jsonl")
    assert (result.exit_code, result.stdout[:44]) == (1, "2 added or changed, 0 unchanged, 1 left out,")
    assert "old.jsonl, line 2: " in result.stderr
    (tmp_path / "new.jsonl").write_bytes(b'{"id": "1", "text": "Another one."}')
    assert done("add", path, "new.jsonl")["added"] == 1
    assert f"{tmp_path}/new.jsonl takes over the id '1' of a document from {tmp_path}/old.jsonl" in caplog.text
    monkeypatch.chdir(tmp_path / "b")
    deleted = run("delete", path, "docs", "../new.jsonl", "nobody", "--json")
    assert (deleted.exit_code, json.loads(deleted.stdout)) == (1, {"deleted": 2, "unknown": ["nobody"]})
    assert {d["id"] for d in done("info", path, "--documents")["list"]} == {f"{tmp_path}/a/docs/x.txt", "2"}


def test_ask_answers_with_steps_sources_and_a_page(index, tmp_path):
    page = tmp_path / "answer.html"
    question = "Where was the owner of the house born that Acme rents?"
    result = run("ask", index, question, "--threshold", "0", "--max-steps", "4", "--page", page)
    assert result.exit_code == 0, result.output
    for part in ("step 1", "candidates", "answer", "docs/lease.md", "score", "ended by"):
        assert part in result.stdout
    assert page.read_text().startswith("<!DOCTYPE html>")
    quiet = run("ask", index, question, "--threshold", "0", "--quiet")
    answer = done("ask", index, question, "--threshold", "0")
    assert "".join(quiet.stdout.split()) == "".join(answer["answer"].split())
    assert answer["found"]
    assert answer["steps"][0]["recalls"][0]["score"] >= 0
    for source in answer["sources"]:
        assert source["end"] - source["start"] == len(source["text"])
    with MemoryIndex.open(index) as opened:
        for evidence in answer["evidence"]:
            text = opened.get(evidence["chunk"].rpartition("#")[0]).text
            assert text[evidence["start"] : evidence["end"]] == evidence["text"]


def test_recall_shows_blocks_best_first_and_heeds_the_filter(index):
    found = done("recall", index, "Who owns Mill House?", "--k", "3")
    assert len(found) == 3
    assert sorted((f["score"] for f in found), reverse=True) == [f["score"] for f in found]
    assert [f["document"] for f in done("recall", index, "mill", "--filter", '{"year": {"<": 2000}}')] == ["old"]
    assert [f["document"] for f in done("recall", index, "mill", "--method", "gate", "--k", "1")] == [
        done("recall", index, "mill", "--method", "gate")[0]["document"]
    ]
    between = (found[0]["score"] + found[1]["score"]) / 2
    assert done("recall", index, "Who owns Mill House?", "--min-score", between) == found[:1]
    table = run("recall", index, "Who owns Mill House?").stdout
    assert "docs/houses.md" in table
    assert run("recall", index, "mill", "--filter", '{"year": 1}').stdout == "Nothing was found.\n"


def test_info_delete_compact_and_verify(docs, tmp_path):
    path = tmp_path / "a.mem"
    done("add", path, docs)
    facts = done("info", path, "--documents")
    assert facts["documents"] == 4
    assert facts["settings"]["encoder"] == "all-MiniLM-L6-v2"
    listed = {d["id"]: d["metadata"] for d in facts["list"]}
    assert listed["old"] == {"path": f"{docs}/year.jsonl", "format": "jsonl", "year": 1920}
    assert "people.txt" in run("info", path, "--documents").stdout.replace("\n", "")
    assert done("delete", path, docs / "lease.md") == {"deleted": 1, "unknown": []}
    assert done("delete", path, "--filter", '{"year": 1920}') == {"deleted": 1, "unknown": []}
    compacted = done("compact", path)
    assert set(compacted) == {"bytes_before", "bytes"}
    facts = done("info", path)
    assert (facts["documents"], facts["deleted"]) == (2, 0)
    assert done("verify", path) == {"problems": []}
    assert run("verify", path).stdout == "no problem found\n"

    vectors = next(path.glob("chunks-*.bin"))
    data = bytearray(vectors.read_bytes())
    data[5] ^= 1
    vectors.write_bytes(data)
    result = run("verify", path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert run("verify", path, "--json").exit_code == 1


def test_documents_of_files_that_are_gone_are_deleted_if_asked(tmp_path):
    folder, path = tmp_path / "docs", tmp_path / "a.mem"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", "sub/c.txt"):
        (folder / name).write_text(f"Text of {name}.")
    (tmp_path / "other.txt").write_text("Another text.")
    done("add", path, folder, tmp_path / "other.txt")
    (folder / "sub" / "b.txt").unlink()
    (folder / "a.txt").unlink()
    (tmp_path / "other.txt").unlink()
    assert done("add", path, folder)["documents"] == 4
    assert "1 unchanged, 1 deleted, 3 documents" in run("add", path, folder / "sub", "--prune").stdout
    pruned = done("add", path, folder, "--prune")
    assert (pruned["deleted"], pruned["documents"]) == (1, 2)
    left = [d["id"] for d in done("info", path, "--documents")["list"]]
    assert left == ["docs/sub/c.txt", "other.txt"]
    folder.rename(tmp_path / "away")  # a folder that is not there, such as one of another machine, deletes nothing
    assert run("add", path, folder, "--prune").exit_code == 1
    assert done("info", path)["documents"] == 2


def test_what_was_just_read_is_not_pruned(tmp_path):
    folder, path = tmp_path / "docs", tmp_path / "a.mem"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("The name of this file is not UTF-8.")
    line = {"id": "own", "text": "Its metadata has a path.", "metadata": {"path": "docs/elsewhere.txt"}}
    (folder / "lines.jsonl").write_text(json.dumps(line))
    added = done("add", path, folder, "--prune")
    assert (added["added"], added["deleted"], added["documents"]) == (2, 0, 2)
    again = done("add", path, folder, "--prune")
    assert (again["unchanged"], again["deleted"], again["documents"]) == (2, 0, 2)


def test_an_empty_filter_deletes_nothing(docs, tmp_path):
    path = tmp_path / "a.mem"
    before = done("add", path, docs)["documents"]
    result = run("delete", path, "--filter", "{}")
    assert result.exit_code == 2 and "an empty filter names every document" in result.stderr
    assert done("info", path)["documents"] == before > 0


def test_an_empty_name_is_no_folder(docs, tmp_path, monkeypatch):
    path = tmp_path / "a.mem"
    (tmp_path / "b.txt").write_text("Text.")
    before = done("add", path, docs, tmp_path / "b.txt")["documents"]
    (tmp_path / "b.txt").unlink()
    monkeypatch.chdir(tmp_path)
    for ids in ([""], [docs / "lease.md", ""]):
        result = run("delete", path, *ids)
        assert result.exit_code == 2 and "an id or path is empty" in result.stderr
    assert run("add", path, "", "--prune").exit_code == 1
    assert done("info", path)["documents"] == before > 0


def test_the_demo_leaves_an_index_with_other_documents_alone(docs, tmp_path):
    path = tmp_path / "a.mem"
    before = done("add", path, docs)["documents"]
    result = run("demo", "--index", path)
    assert result.exit_code == 2 and "it holds other documents" in result.stderr
    assert done("info", path)["documents"] == before


def test_deleting_what_is_not_there_is_an_error(tmp_path):
    path = tmp_path / "a.mem"
    (tmp_path / "a.txt").write_text("Text.")
    done("add", path, tmp_path / "a.txt")
    assert json.loads(run("delete", path, "b", "--json").stdout) == {"deleted": 0, "unknown": ["b"]}
    assert run("delete", path, "b", "--json").exit_code == 1
    assert "not in the index: b" in failed(1, "delete", path, "a.txt", "b")
    assert done("info", path)["documents"] == 0


def test_an_index_of_another_programs_encoder_can_be_kept(tmp_path):
    path = tmp_path / "a.mem"
    with MemoryIndex.create(path, IndexConfig(encoder=HashEncoder())) as made:
        made.add([Document(id="a", text="Text."), Document(id="b", text="More.")])
    assert done("info", path)["documents"] == 2
    assert done("delete", path, "a")["deleted"] == 1
    assert done("verify", path) == {"problems": []}
    assert "HashEncoder" in failed(1, "ask", path, "q")


@pytest.mark.parametrize(
    ("code", "args", "message"),
    [
        (2, [], "Usage"),
        (2, ["nothing"], "No such command"),
        (2, ["ask"], "Missing argument"),
        (1, ["ask", "NOWHERE", "q"], "/a' has no index: create one with `compmem add`"),
        (1, ["mcp", "NOWHERE"], "/a' has no index"),
        (1, ["info", "DOCS"], "has no index: create one with `compmem add`"),
        (1, ["info", "FILE"], "is a file, not the folder of an index"),
        (2, ["add", "FILE", "FILE"], "is a file; an index is a folder"),
        (2, ["add", "DOCS", "FILE"], "is not empty and has no index"),
        (2, ["ask", "INDEX", " "], "the question is empty"),
        (2, ["recall", "INDEX", "q", "--k", "0"], "'--k'"),
        (2, ["ask", "INDEX", "q", "--max-steps", "-3"], "'--max-steps'"),
        (2, ["ask", "INDEX", "q", "--page", "NOWHERE/a.html"], "there is no folder"),
        (2, ["serve", "INDEX", "--port", "99999"], "'--port'"),
        (2, ["recall", "INDEX", "q", "--filter", "{"], "--filter is not JSON"),
        (2, ["recall", "INDEX", "q", "--filter", '{"a": {"~": 1}}'], "unknown filter operator '~'"),
        (2, ["delete", "INDEX"], "name the ids"),
        (2, ["ask", "INDEX", "q", "--threshold", "3"], "threshold=3.0"),
        (2, ["ask", "INDEX", "q", "--reader", "latent"], "this index has dense memory"),
        (2, ["ask", "INDEX", "q", "--reader", "chat"], "needs --model"),
        (2, ["ask", "INDEX", "q", "--base-url", "u"], "need --model"),
        (2, ["ask", "INDEX", "q", "--model", "m", "--base-url", "notaurl"], "'notaurl' must begin with http:// or"),
        (2, ["mcp", "INDEX", "--api-key-env", "KEY_7"], "need --model"),
        (2, ["serve", "INDEX", "--replicas", "2"], "--replicas needs --ray"),
        (2, ["serve", "INDEX", "--shard-actors", "2"], "--shard-actors needs --ray"),
        (2, ["serve", "INDEX", "--ray", "local", "--processes", "2"], "not both"),
        (2, ["add", "NEW", "FILE", "--ray", "local", "--workers", "2"], "not both"),
        (2, ["ask", "INDEX", "q", "--model", "m", "--reader", "extractive"], "one of them must be chat"),
        (2, ["ask", "INDEX", "q", "--cite"], "--cite is for a chat model: give --model"),
        (2, ["ask", "INDEX", "q", "--rounds", "1"], "--rounds is for a chat model: give --model"),
        (2, ["serve", "INDEX", "--cite"], "--cite is for a chat model: give --model"),
        (1, ["ask", "INDEX", "q", "--reader", "chat", "--model", "m"], "'OPENAI_API_KEY' is not set"),
        (1, ["ask", "INDEX", "q", "--reader", "chat", "--model", "m", "--api-key-env", "KEY_7"], "'KEY_7' is not set"),
        (1, ["add", "INDEX", "FILE", "--chunk-tokens", "99"], "was made with chunk_tokens=256, not 99"),
        (2, ["add", "NEW", "FILE", "--vectors", "fp64"], "vectors='fp64'"),
        (2, ["add", "NEW", "FILE", "--kv", "int8"], "kv='int8' is for memory='kv'"),
        (2, ["add", "NEW", "-", "--stdin-format", "doc"], "must be one of txt"),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_an_exit_code(index, docs, tmp_path, monkeypatch, code, args, message):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    names = {
        "INDEX": index, "DOCS": docs, "FILE": docs / "lease.md", "NOWHERE": tmp_path / "a", "NEW": tmp_path / "b",
    }  # fmt: skip
    said = failed(code, *(names.get(a, a) for a in args))
    if args == []:
        return
    assert message in said
    if said.startswith("error: "):
        assert said.count("\n") == 1


def test_exit_codes_are_those_that_the_reference_and_the_code_name(index, monkeypatch):
    texts = sys.modules["compmem.cli.app"].__doc__, Path("docs/command.md").read_text()
    code, reference = (re.search(r"Exit codes: .*?\.\s", text, re.DOTALL)[0].split() for text in texts)
    assert code == reference
    monkeypatch.setattr("compmem.serving.run.open_index", lambda settings: MemoryIndex.open(settings.index))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run("serve", index, "--port", taken.getsockname()[1]).exit_code == 3

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("compmem.store.open_store", interrupted)
    assert run("info", index).exit_code == 130


def test_the_version_is_that_of_the_library():
    assert run("--version").stdout == f"compmem {__version__}\n"


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "info", tmp_path / "nowhere")
    assert type(result.exception).__name__ == "StoreError"


def test_help_needs_no_heavy_library():
    code = (
        "import sys\nimport compmem\nassert 'typer' not in sys.modules\nfrom compmem.cli import app\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'openai', 'lxml', 'mammoth', 'faiss'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="core")
    for command in ["", *"add ask recall delete compact info verify demo bench train".split()]:
        result = run(*filter(None, [command]), "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout


REPLY = "<think>It says so.</think><check>yes</check><update>Dora Finch owns Mill House.</update><next>end</next>"


class ChatServer(BaseHTTPRequestHandler):
    """A chat endpoint with optional streaming: notes while reading, an answer at the end."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        if self.server.fails:
            self.send_error(400, "no such model")
            return
        text = REPLY if "<block>" in body["messages"][-1]["content"] else "Dora \x1b[31mFinch."
        self.send_response(200)
        if not body.get("stream"):
            self.whole(text)
            return
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for at in range(0, len(text), 9):
            part = {
                "id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m",
                "choices": [{"index": 0, "delta": {"content": text[at : at + 9]}, "finish_reason": None}],
            }  # fmt: skip
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def whole(self, text):
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        said = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [said], "usage": usage}
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), ChatServer)
    server.seen, server.fails = [], False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_chat_endpoint_reads_and_answers(index, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not for others")
    monkeypatch.setenv("MY_KEY", "secret")
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    args = ["ask", index, "Who owns Mill House?", "--threshold", "0"]
    args += ["--reader", "chat", "--model", "m", "--base-url", url]
    answer = done(*args, "--api-key-env", "MY_KEY")
    assert answer["working_memory"] == "Dora Finch owns Mill House."
    assert answer["stop_reason"] == "exit_gate"
    assert answer["usage"]["model_calls"] == 2
    assert [key for _, key, _ in endpoint.seen] == ["Bearer secret"] * 2
    assert endpoint.seen[0][0] == "/v1/chat/completions"
    assert endpoint.seen[0][2]["stream"]
    shown = run(*args)
    assert "Dora \ufffd[31mFinch." in shown.stdout
    assert endpoint.seen[-1][1] == "Bearer none", "a key goes only where it was named for"
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    for key in ("of that server", ""):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        done(*args[: args.index("--base-url")])
        assert endpoint.seen[-1][1] == f"Bearer {key or 'none'}", "both variables belong together"
    endpoint.seen.clear()
    args[args.index("--reader")] = "--writer"
    once = done(*args)
    assert len(endpoint.seen) == once["usage"]["model_calls"] == 1
    assert "Mill House" in endpoint.seen[0][2]["messages"][-1]["content"]
    endpoint.fails = True
    assert "error: the chat model failed: BadRequestError" in failed(1, *args)


def test_a_chat_endpoint_that_is_not_there_is_named(index):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        args = ["--model", "m", "--base-url", f"http://user:secret@{place}/v1"]
        told = failed(1, "ask", index, "Who owns Mill House?", *args)
    assert f"error: the chat model failed: ConnectionError: no server answers at {place}" in told
    assert "secret" not in told


def test_an_empty_file_of_a_folder_is_left_out_and_a_named_one_is_an_error(tmp_path):
    docs = tmp_path / "package"
    docs.mkdir()
    (docs / "__init__.py").touch()
    (docs / "a.py").write_text("def hello():\n    return 1\n")
    made = run("add", tmp_path / "a", docs)
    assert made.exit_code == 0, made.output
    assert "1 added" in made.output
    named = run("add", tmp_path / "b", docs / "__init__.py")
    assert named.exit_code == 1
    assert "contains no text" in named.output
