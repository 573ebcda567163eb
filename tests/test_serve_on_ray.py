"""The server on Ray Serve: one application in several replicas, over the same folder."""

import http.client
import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from compmem import Document, MemoryIndex, StoreError
from compmem.serving import on_ray
from compmem.serving.run import Settings
from compmem.serving.tenancy import Tenant
from compmem.serving.tokens import Tokens

QUESTION = "Who insures the building that Acme rents?"
ADMIN, RED, BLUE = (f"{name}-0123456789abcdef" for name in ("admin", "red", "blue"))
TOKENS = Tokens(
    [(ADMIN, Tenant("admin")), (RED, Tenant("red", {"tenant": "red"})), (BLUE, Tenant("blue", {"tenant": "blue"}))]
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "index"
    with MemoryIndex.create(path, shards=2) as index:
        index.add(
            [
                Document(id="acme", title="Acme", text="Acme rents the Harbour Building.", metadata={"tenant": "red"}),
                Document(
                    id="harbour", title="Harbour Building", text="The Harbour Building is insured by Lloyd.",
                    metadata={"tenant": "red"},
                ),
            ]
        )  # fmt: skip
    return path


class Chat(BaseHTTPRequestHandler):
    """A chat endpoint; it writes until the client has gone if the question says so, else one word after a second."""

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.server.writing.set()
        try:
            while "forever" in asked:
                self.word("word ")
                time.sleep(0.02)
        except OSError:
            self.server.stopped.set()
            return
        time.sleep(1)
        self.word("Lloyd.")
        self.wfile.write(b"data: [DONE]\n\n")

    def word(self, text):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        part = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *args):
        pass


@pytest.fixture
def chat():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    server.daemon_threads = True
    server.writing, server.stopped = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'compmem[ray]'")
    from compmem import distributed

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("RAY_worker_niceness", "0")
        with distributed.ray_cluster("local"):
            yield


class Client:
    """Requests to a server on this machine."""

    def __init__(self, port):
        self.port = port

    def open(self, method, path, body=None, token=ADMIN):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection, connection.getresponse()

    def __call__(self, method, path, body=None, token=ADMIN):
        connection, reply = self.open(method, path, body, token)
        try:
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def add(self, number):
        """Adds a document; comes again as long as another replica is writing."""
        body = {"documents": [{"id": f"n{number}", "text": f"House {number} has {number} doors."}]}
        while (replied := self("POST", "/documents", body, BLUE))[0] == 503:
            time.sleep(0.1)
        return replied


def wait_until(ready, seconds=120):
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.2)


def listens(port):
    try:
        return Client(port)("GET", "/health")[0] == 200
    except OSError:
        return False


@pytest.mark.slow  # a Ray cluster takes half a minute
@pytest.mark.timeout(900)
def test_replicas_are_one_server(cluster, folder, chat):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    writer = {"model": "m", "base_url": f"http://127.0.0.1:{chat.server_port}/v1", "api_key_env": None}
    settings = Settings(index=str(folder), chat=writer, processes=2)
    call = Client(port)
    with ThreadPoolExecutor(8) as pool:
        with on_ray.run_server(settings, TOKENS, "127.0.0.1", port):
            wait_until(lambda: listens(port))
            # The routes, tokens, tenants and limits are those of the application.
            assert call("GET", "/documents", token="wrong")[0] == 401
            assert call("POST", "/recall", {"question": " "})[0] == 400
            assert call("POST", "/recall", {"question": "x" * 5000})[0] == 413
            found = [call("POST", "/recall", {"question": QUESTION, "k": 2}, RED) for _ in range(4)]
            assert {r["document"] for _, body in found for r in body["recalls"]} == {"acme", "harbour"}
            assert call("POST", "/recall", {"question": QUESTION}, BLUE) == (200, {"recalls": []})
            # Both replicas write and see what the other has written; nothing is lost or doubled.
            assert {status for status, _ in pool.map(call.add, [*range(20), *range(20)])} == {200}
            totals = list(pool.map(lambda _: call("GET", "/documents", token=BLUE)[1]["total"], range(20)))
            assert totals == [20] * 20
            # A client that goes away stops the work.
            turns = [{"role": "user", "content": f"{QUESTION} forever"}]
            asked = {"model": "compmem", "stream": True, "messages": turns}
            connection, reply = call.open("POST", "/v1/chat/completions", asked, RED)
            while b"word" not in reply.readline():
                pass
            reply.close()
            connection.close()
            assert chat.stopped.wait(60)
            with pytest.raises(ValueError, match="runs Ray Serve already"):
                on_ray.run_server(settings, TOKENS, "127.0.0.1", port).__enter__()
            # A request at work is finished before the server ends.
            chat.writing.clear()
            last = pool.submit(call, "POST", "/answer", {"question": QUESTION}, RED)
            assert chat.writing.wait(60)
        assert last.result()[0] == 200
        assert last.result()[1]["answer"] == "Lloyd."
    with pytest.raises(ValueError, match=r"CPUs, too few for 999 replicas"):
        on_ray.deployment(Settings(index=str(folder), processes=999), TOKENS)
    with MemoryIndex.open(folder) as index:
        assert index.verify() == []
        assert index.info().documents == 2 + 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_replicas_ask_shards_in_actors(cluster, folder):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    call = Client(port)
    with on_ray.run_server(Settings(index=str(folder), processes=2), TOKENS, "127.0.0.1", port, shard_actors=2):
        wait_until(lambda: listens(port))
        found = [call("POST", "/recall", {"question": QUESTION, "k": 2}, RED) for _ in range(4)]
        assert {r["document"] for _, body in found for r in body["recalls"]} == {"acme", "harbour"}
        assert call("POST", "/recall", {"question": QUESTION}, BLUE) == (200, {"recalls": []})
        assert call("POST", "/documents", {"documents": [{"text": "House."}]})[0] == 403
        # What another process adds is seen by the next question of each replica.
        with MemoryIndex.open(folder) as index:
            before = index.answer(QUESTION, filter={"tenant": "red"}).text
            index.add([Document(id="new", title="Borel", text="Borel rents a mill.", metadata={"tenant": "blue"})])
        found = [call("POST", "/recall", {"question": "What does Borel rent?", "k": 1}, BLUE) for _ in range(6)]
        assert [body["recalls"][0]["document"] for _, body in found] == ["new"] * 6
        assert call("POST", "/answer", {"question": QUESTION}, RED)[1]["answer"] == before


async def test_a_replica_of_a_replaced_folder_is_unhealthy(folder, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    with MemoryIndex.open(folder) as index:
        index.copy_to(one)
        index.copy_to(two)
    replica = on_ray.Replica(Settings(index=str(one)), None)
    await replica.check_health()
    one.rename(tmp_path / "old")
    two.rename(one)
    with pytest.raises(StoreError):
        await replica.check_health()


def test_a_cluster_needs_tokens_and_ray_must_be_there(folder, monkeypatch):
    monkeypatch.delenv("COMPMEM_TOKENS", raising=False)
    monkeypatch.setattr(on_ray, "_ray_serve", lambda: None)
    with pytest.raises(ValueError, match="serving on a cluster needs tokens"):
        on_ray.serve(Settings(index=str(folder)), "127.0.0.1", 8000, "auto")
    with pytest.raises(ValueError, match=r"'0\.0\.0\.0' needs tokens"):
        on_ray.serve(Settings(index=str(folder)), "0.0.0.0", 8000, "local")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'compmem\[ray,serve\]'"):
        on_ray.serve(Settings(index=str(folder)), "127.0.0.1", 8000, "local")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_port_in_use_is_seen_in_either_family(host):
    (family, *_, address), *_ = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    try:
        held = socket.create_server(address, family=family)
    except OSError:
        pytest.skip("this machine does not have this family")
    with held:
        port = held.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            on_ray._check_free(host, port)
    on_ray._check_free(host, port)
