"""What a server does with slow, many and departing clients."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest

from compmem import deadline, threads
from compmem.serving.app import create_app
from compmem.serving.limits import Limits
from tests.serving import ADMIN, QUESTION, TOKENS, calling, chat, listening, make_index


@pytest.fixture(scope="module")
def index():
    """An index that no test changes."""
    with make_index() as made:
        yield made


class SlowChat:
    """A chat model that writes endlessly and records whether and what it is writing."""

    def __init__(self, seconds=0.01):
        self.writing = threading.Event()
        self.stopped = threading.Event()
        self.pieces = 0
        self.seconds = seconds

    async def __call__(self, messages):
        self.writing.set()
        try:
            while True:
                self.pieces += 1
                yield "word "
                await asyncio.sleep(self.seconds)
        finally:
            self.stopped.set()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_the_work_and_frees_its_place(index, stream):
    slow = SlowChat()
    app = create_app(index, tokens=TOKENS, chat=slow, limits=Limits(at_once=1, waiting=1, wait_seconds=20))
    with listening(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        body = json.dumps(chat(stream=stream)).encode()
        with socket.create_connection(("127.0.0.1", port)) as gone:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n"
            gone.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            assert slow.writing.wait(30)
        assert slow.stopped.wait(30)
        reply = client.post("/recall", json={"question": QUESTION}, headers={"Authorization": f"Bearer {ADMIN}"})
        assert reply.status_code == 200


@pytest.mark.parametrize("turns", range(6))
async def test_a_request_cancelled_at_any_turn_of_the_event_loop_ends(index, turns):
    busy = SlowChat(seconds=0)
    async with calling(index, chat=busy) as client:
        request = asyncio.ensure_future(client.post("/v1/chat/completions", json=chat()))
        assert await asyncio.to_thread(busy.writing.wait, 30)
        for _ in range(turns):
            await asyncio.sleep(0)
        written = busy.pieces
        request.cancel()
        await asyncio.wait({request})
    assert busy.stopped.is_set() and busy.pieces <= written + 1


async def test_who_comes_when_too_many_wait_is_told_to_try_again(index):
    slow = SlowChat()
    limits = Limits(at_once=1, waiting=1, wait_seconds=0.2, answer_seconds=600)
    async with calling(index, chat=slow, limits=limits) as client:
        first = asyncio.ensure_future(client.post("/v1/chat/completions", json=chat()))
        assert await asyncio.to_thread(slow.writing.wait, 30)
        others = await asyncio.gather(*(client.post("/recall", json={"question": QUESTION}) for _ in range(3)))
        assert [r.status_code for r in others] == [503] * 3
        assert all(r.headers["Retry-After"] == "1" for r in others)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await client.post("/recall", json={"question": QUESTION})).status_code == 200


async def test_an_answer_that_takes_too_long_ends_with_what_is_known(index, monkeypatch):
    slow, limits = SlowChat(), Limits(answer_seconds=600)
    clock = SimpleNamespace(monotonic=lambda: 1000.0 if slow.writing.is_set() else 0.0)
    monkeypatch.setattr(deadline, "time", clock)
    async with calling(index, chat=slow, limits=limits) as client:
        reply = await client.post("/v1/chat/completions", json=chat())
    assert reply.json()["compmem"]["stop_reason"] == "seconds"
    assert reply.json()["choices"][0]["message"]["content"] == "word"


def test_a_body_that_does_not_come_is_not_waited_for(index):
    app = create_app(index, tokens=TOKENS, limits=Limits(body_seconds=0.1))
    with listening(app) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        head = f"POST /recall HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n"
        slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{".encode())
        slow.settimeout(30)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_its_stream_is_let_go(index):
    class Loud(SlowChat):
        async def __call__(self, messages):
            try:
                while True:
                    yield "word " * 20_000
                    await asyncio.sleep(0)
            finally:
                self.stopped.set()

    loud = Loud()
    app = create_app(index, tokens=TOKENS, chat=loud, limits=Limits(send_seconds=0.2))
    with listening(app) as port, socket.create_connection(("127.0.0.1", port)) as lazy:
        body = json.dumps(chat(stream=True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n"
        lazy.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert loud.stopped.wait(30)


async def test_health_is_told_while_all_threads_are_at_work(index, monkeypatch):
    monkeypatch.setattr(threads, "_index_pool", ThreadPoolExecutor(1))
    done = threading.Event()
    threads.submit(done.wait, 20)
    try:
        async with calling(index) as client, asyncio.timeout(10):
            assert (await client.get("/health")).json() == {"status": "ok"}
    finally:
        done.set()


async def test_a_long_conversation_is_read_in_bounded_time(index):
    history = [{"role": "assistant", "content": "Acme Harbour " * 20_000} for _ in range(20)]
    began = time.process_time()
    async with calling(index) as client:
        body = {"model": "compmem", "messages": [*history, {"role": "user", "content": "Who insures it?"}]}
        whole = (await client.post("/v1/chat/completions", json=body)).json()
    assert whole["choices"][0]["message"]["content"]
    assert time.process_time() - began < 1.5
