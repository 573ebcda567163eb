"""The HTTP server: routes and tenants in one process, and over a real socket where needed."""

import asyncio
import json

import httpx
import openai
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from compmem import IndexConfig, MemoryIndex, StoreError
from compmem.serving import run
from compmem.serving.app import create_app
from compmem.serving.limits import MAX_WAITING_CHARS, BusyError, ConcurrencyLimiter, Limits
from compmem.serving.run import Settings, serve
from compmem.serving.tenancy import Tenant
from compmem.serving.tokens import Tokens
from tests.hashing import HashEncoder
from tests.serving import ADMIN, BLUE, QUESTION, READER, RED, TOKENS, calling, chat, listening, make_index


@pytest.fixture(scope="module")
def index():
    """An index that no test changes."""
    with make_index() as made:
        yield made


@pytest.fixture
def changing():
    """An index of the test's own."""
    with make_index() as made:
        yield made


def test_questions_at_work_divide_the_cores_for_torch_and_blas(index, monkeypatch):
    monkeypatch.setattr(run.os, "cpu_count", lambda: 12)
    before = torch.get_num_threads()
    try:
        with threadpool_limits(5, user_api="blas"):
            run.open_index(Settings(index="", processes=2, limits={"at_once": 3}), lambda **options: index)
            blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
            assert blas
            assert {*blas, torch.get_num_threads()} == {2}
    finally:
        torch.set_num_threads(before)


async def test_the_chat_model_cites_only_where_the_server_is_told_so(index, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "Endpoint", lambda **options: lambda messages: asked.append(messages) or "Lloyd [1].")
    for cite in (False, True):
        app = run.make_app(Settings(index="", chat={}, cite=cite), index, TOKENS)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://server", headers={"Authorization": f"Bearer {ADMIN}"}
        ) as client:
            reply = await client.post("/v1/chat/completions", json=chat())
        assert reply.json()["choices"][0]["message"]["content"] == "Lloyd [1]."
    assert ["number of its block" in messages[-1]["content"] for messages in asked] == [False, True]


def test_an_openai_client_gets_the_librarys_answer_whole_and_in_pieces_with_sources(index):
    expected = index.answer(QUESTION)
    with listening(create_app(index, tokens=TOKENS)) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=ADMIN, max_retries=0)
        assert [m.id for m in client.models.list()] == ["compmem"]
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        asked = [*turns, {"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
        whole = client.chat.completions.create(model="compmem", messages=asked)
        made = client.chat.completions.create(
            model="compmem", messages=asked, stream=True, stream_options={"include_usage": True}
        )
        pieces = list(made)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0).models.list()
    assert whole.choices[0].message.content == expected.text
    told = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    assert told.strip() == expected.text
    assert pieces[-1].usage.total_tokens == 0
    for extra in (whole.compmem, pieces[-2].compmem):
        assert [s["chunk"] for s in extra["sources"]] == [s.chunk.id for s in expected.sources]
        assert extra["found"] is True


async def test_recall_answer_and_its_stream_say_what_the_library_says(index):
    async with calling(index) as client:
        found = (await client.post("/recall", json={"question": QUESTION, "k": 2})).json()["recalls"]
        whole = (await client.post("/answer", json={"question": QUESTION})).json()
        lines = (await client.post("/answer", json={"question": QUESTION, "stream": True})).text.splitlines()
        assert (await client.get("/health")).json() == {"status": "ok"}
    assert [r["chunk"] for r in found] == [r.chunk.id for r in index.recall(QUESTION, 2)]
    assert whole["answer"] == index.answer(QUESTION).text
    named = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert named[0] == "step"
    assert named[-1] == "answer"
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert data[-1]["answer"] == whole["answer"]


async def test_a_token_sees_adds_and_deletes_only_its_tenants_documents(changing):
    async with calling(changing, RED) as red, calling(changing, BLUE) as blue, calling(changing, READER) as reader:
        # A filter cannot widen what the token allows.
        wide = {"question": QUESTION, "k": 9, "filter": {"or": [{"tenant": "red"}, {"tenant": "blue"}]}}
        seen = {r["document"] for r in (await red.post("/recall", json=wide)).json()["recalls"]}
        assert seen <= {"acme", "harbour"}
        extra = (await blue.post("/v1/chat/completions", json=chat())).json()["compmem"]
        assert {s["document"] for s in extra["sources"]} <= {"zoo"}
        most = {f"k{n}": None for n in range(100)}
        found = await red.post("/recall", json={"question": QUESTION, "k": 9, "filter": most})
        assert {r["document"] for r in found.json()["recalls"]} == {"acme", "harbour"}
        # Both may use one id, and neither learns of the other's document.
        new = {"documents": [{"id": "acme", "text": "Acme is a blue bird."}]}
        assert (await blue.post("/documents", json=new)).json() == {"added": 1, "unchanged": 0, "ids": ["acme"]}
        assert (await blue.post("/documents", json=new)).json()["unchanged"] == 1
        assert [d["id"] for d in (await blue.get("/documents")).json()["documents"]] == ["zoo", "acme"]
        assert changing.get("acme").text == "Acme rents the Harbour Building."
        assert changing.get("blue/acme").metadata == {"tenant": "blue"}
        # A second token of the same name has the same ids.
        assert (await red.post("/documents", json={"documents": [{"id": "mine", "text": "Red."}]})).status_code == 200
        assert [d["id"] for d in (await reader.get("/documents")).json()["documents"]] == ["acme", "harbour", "mine"]
        assert (await red.delete("/documents/mine")).json() == {"deleted": 1}
        lines = {"documents": [{"id": "a\nb\n", "text": "Red."}]}
        assert (await red.post("/documents", json=lines)).json()["ids"] == ["a\nb\n"]
        assert (await red.delete("/documents/a%0Ab%0A")).json() == {"deleted": 1}
        # Another tenant's document and a missing one give the same response.
        foreign, unknown = await red.delete("/documents/zoo"), await red.delete("/documents/nothing")
        assert (foreign.status_code, foreign.content) == (unknown.status_code, unknown.content)
        assert foreign.status_code == 404
        assert (await red.delete("/documents/blue%2Facme")).status_code == 404
        assert (await blue.delete("/documents/acme")).json() == {"deleted": 1}
        claimed = {"documents": [{"text": "Mine.", "metadata": {"tenant": "blue"}}]}
        assert (await red.post("/documents", json=claimed)).status_code == 400
        assert (await reader.post("/documents", json=new)).status_code == 403
        assert (await reader.delete("/documents/acme")).status_code == 403
    assert len(changing) == 3


async def test_an_id_that_begins_like_the_stored_ids_of_its_tenant_is_another_one(changing):
    async with calling(changing, RED) as client:

        async def shown(**wanted):
            return (await client.post("/recall", json={"question": "bricks", "k": 9, **wanted})).json()["recalls"]

        for id, text in (("a.md", "Red bricks."), ("red/a.md", "Green bricks.")):
            await client.post("/documents", json={"documents": [{"id": id, "text": text}]})
        for id, text in (("a.md", "Red bricks."), ("red/a.md", "Green bricks.")):
            assert [(r["document"], r["text"]) for r in await shown(filter={"document_id": id})] == [(id, text)]
        assert (await client.delete("/documents/red/a.md")).status_code == 200
        assert (await client.delete("/documents/red/a.md")).status_code == 404
        assert {r["text"] for r in await shown()} >= {"Red bricks."}


async def test_a_tenant_filters_by_its_own_ids_and_sees_no_others(changing):
    async with calling(changing, RED) as red, calling(changing, BLUE) as blue:

        async def found(client, wanted):
            reply = await client.post("/recall", json={"question": QUESTION, "k": 9, "filter": wanted})
            return {r["document"] for r in reply.json()["recalls"]}

        for client, text in ((red, "Acme rents red bricks."), (blue, "Acme rents a blue boat.")):
            new = {"documents": [{"id": "new", "text": text}]}
            assert (await client.post("/documents", json=new)).status_code == 200
        for one in ("new", {"==": "new"}, {"in": ["new", "zoo", "blue/new", 5]}):
            assert await found(red, {"document_id": one}) == {"new"}
        assert await found(red, {"document_id": "acme"}) == {"acme"}  # the server did not add it
        for others in ({"!=": "new"}, {"not in": ["new"]}):
            assert await found(red, {"document_id": others}) == {"acme", "harbour"}
        assert await found(red, {"not": {"or": [{"document_id": "new"}, [{"document_id": "acme"}]]}}) == {"harbour"}
        for foreign in ("zoo", "blue/new"):
            assert await found(red, {"document_id": foreign}) == set()
        for test in ({"contains": "re"}, {">": "a"}, {"text match": "RED"}, {"is empty": False}, {"any": ["new"]}):
            refused = await red.post("/recall", json={"question": QUESTION, "filter": {"document_id": test}})
            assert refused.status_code == 400
            assert "takes ==, !=, in and 'not in' here" in refused.json()["error"]["message"]
        twice = {"documents": [{"id": "d", "text": "Red."}, {"id": "d", "text": "Green."}]}
        refused = await red.post("/documents", json=twice)
        assert refused.json()["error"]["message"] == "document id 'd' is given twice, with different content"
    async with calling(changing, ADMIN) as admin:  # who sees everything has the ids of the index
        assert await found(admin, {"document_id": {"contains": "blue/"}}) == {"blue/new"}


@pytest.mark.parametrize("shards", [None, 2])
async def test_processes_over_one_folder_see_each_others_documents_and_lose_none(tmp_path, shards, monkeypatch):
    monkeypatch.setattr("compmem.store.folder_store.LOCK_SECONDS", 0.2)
    encoder = HashEncoder()
    with (
        MemoryIndex.create(tmp_path / "index", IndexConfig(encoder=encoder), shards=shards) as one,
        MemoryIndex.open(tmp_path / "index", encoder=encoder) as two,
    ):
        async with calling(one) as first, calling(two) as second:

            async def add(client, number):
                body = {"documents": [{"id": f"n{number}", "text": f"House {number} has {number} doors."}]}
                while (reply := await client.post("/documents", json=body)).status_code == 503:
                    assert reply.headers["Retry-After"] == "1"
                    await asyncio.sleep(0.02)
                return reply.json()["added"]

            # Every document is sent to both.
            added = await asyncio.gather(*(add(client, n) for n in range(8) for client in (first, second)))
            assert sum(added) >= 8
            for client in (first, second):
                listed = (await client.get("/documents")).json()["documents"]
                assert sorted(d["id"] for d in listed) == [f"n{n}" for n in range(8)]
            assert (await first.delete("/documents/n3")).status_code == 200
            found = await second.post("/recall", json={"question": "How many doors has House 3?"})
            assert "n3" not in {r["document"] for r in found.json()["recalls"]}
            # Who cannot write in time is told to try again, and nothing has changed.
            with two.store.writing():
                body = {"documents": [{"id": "late", "text": "Too late."}]}
                assert (await first.post("/documents", json=body)).status_code == 503
                assert (await first.delete("/documents/n4")).status_code == 503
        assert sorted(d.id for d in one.documents()) == [f"n{n}" for n in range(8) if n != 3]
        assert one.verify() == []


async def test_documents_are_listed_a_page_at_a_time(index):
    async with calling(index, limits=Limits(documents=2)) as client:
        pages = [(await client.get(f"/documents?offset={offset}")).json() for offset in (0, 2, 4)]
        assert [[d["id"] for d in page["documents"]] for page in pages] == [["acme", "harbour"], ["zoo"], []]
        assert [page["total"] for page in pages] == [3, 3, 3]
        for wrong in ("offset=-1", "offset=x", "limit=2", "filter={}"):
            refused = await client.get(f"/documents?{wrong}")
            assert refused.status_code == 400
            assert wrong.partition("=")[0] in refused.json()["error"]["message"]


async def test_documents_that_wait_are_limited_by_their_characters():
    limiter = ConcurrencyLimiter(at_once=1, waiting=9, seconds=20)

    async def wait(characters):
        async with limiter.slot(characters):
            pass

    async with limiter.slot(MAX_WAITING_CHARS):  # at work, so it does not wait
        first = asyncio.create_task(wait(MAX_WAITING_CHARS))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await wait(1)
    await first
    await wait(MAX_WAITING_CHARS)


async def test_a_read_only_server_changes_nothing(index):
    async with calling(index, ADMIN, read_only=True) as client:
        body = {"documents": [{"text": "New."}]}
        replies = [await client.post("/documents", json=body), await client.delete("/documents/zoo")]
        assert [r.status_code for r in replies] == [403, 403]
        assert (await client.post("/recall", json={"question": QUESTION})).status_code == 200
    assert len(index) == 3


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"{no json", 400),
        ("/v1/chat/completions", b"[" * 100_000, 400),
        ("/v1/chat/completions", b'"text"', 400),
        ("/v1/chat/completions", json.dumps(chat() | {"model": "gpt-5"}).encode(), 404),
        ("/v1/chat/completions", json.dumps(chat() | {"messages": [{"role": "user", "content": 7}]}).encode(), 400),
        ("/v1/chat/completions", json.dumps(chat() | {"messages": "hello"}).encode(), 400),
        ("/v1/chat/completions", json.dumps(chat(filter={"year": {"~": 1}})).encode(), 400),
        ("/v1/chat/completions", json.dumps(chat(filter={"year": {"~": 1}}, stream=True)).encode(), 400),
        ("/v1/chat/completions", json.dumps(chat("x" * 5000)).encode(), 413),
        ("/recall", b'{"question": "Who?", "k": 1e400}', 400),
        ("/recall", b'{"question": "Who?", "k": 0}', 400),
        ("/recall", b'{"question": "Who?", "min_score": 1.5}', 400),
        ("/recall", b'{"question": "   "}', 400),
        ("/recall", b'{"question": "Who?", "filters": {"year": 2020}}', 400),
        ("/recall", b'{"question": "Who?", "stream": true}', 400),
        ("/answer", b'{"question": "Who?", "k": 3}', 400),
        ("/answer", b'{"question": "Who?", "Filter": {"year": 2020}}', 400),
        ("/documents", b'{"documents": [{"text": ""}]}', 400),
        ("/documents", b'{"documents": [{"text": "a", "path": "/etc"}]}', 400),
        ("/documents", json.dumps({"documents": [{"text": "a"}] * 1001}).encode(), 413),
        ("/documents", json.dumps({"documents": [{"text": "x" * 250_000}]}).encode(), 413),
        ("/recall", json.dumps({"question": "Who?", "filter": {"k": {"in": [1] * 10_001}}}).encode(), 413),
        ("/recall", json.dumps({"question": "Who?", "filter": [{"or": [{"k": 1}] * 6000}]}).encode(), 413),
        ("/documents", b'{"documents": [{"text": "a", "metadata": {"k": [' + b"[]," * 60_000 + b"[]]}}]}", 413),
        ("/recall", b'{"question": "Who?", "filter": {"k": ' + b"[" * 100_000, 413),
        ("/recall", json.dumps({"question": '"[,{\\"' * 16_000}).encode(), 413),
        ("/nothing", b"{}", 404),
    ],
)
async def test_what_is_wrong_with_a_request_has_its_status_code(index, path, body, status):
    async with calling(index, limits=Limits(body_bytes=250_000)) as client:
        reply = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == status
    assert len(index) == 3


async def test_marks_of_json_inside_texts_are_no_values(changing):
    text = '"a", [{\\' * 40_000
    async with calling(changing) as client:
        assert (await client.post("/documents", json={"documents": [{"text": text}]})).json()["added"] == 1


async def test_who_has_no_token_gets_nothing_and_a_form_of_a_web_page_neither(index):
    async with calling(index, "wrong-0123456789abcdef") as client:
        replies = [await client.post("/recall", content=b"{no json"), await client.get("/documents")]
        assert [r.status_code for r in replies] == [401, 401]
        assert replies[0].headers["WWW-Authenticate"] == "Bearer"
    async with calling(index) as client:
        form = await client.post("/recall", content=b"{}", headers={"Content-Type": "text/plain"})
        assert form.status_code == 415
    # Without tokens, only local host names: a web page whose own name resolves to this machine is refused.
    transport = httpx.ASGITransport(create_app(index))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/documents")).status_code == 200
        for other in ("evil.example", "testserver"):
            assert (await client.get("/documents", headers={"Host": other})).status_code == 400


@pytest.mark.parametrize(("kind", "status"), [(RuntimeError, 500), (StoreError, 503)])
async def test_what_fails_inside_is_logged_and_not_told(index, monkeypatch, kind, status):
    def broken(*given, **more):
        raise kind("the secret path /srv/index")

    monkeypatch.setattr(index, "question_context", broken)
    async with calling(index) as client:
        reply = await client.post("/recall", json={"question": QUESTION})
    assert reply.status_code == status
    assert "secret" not in reply.text


def test_tokens_are_read_from_a_file_and_bad_ones_refused(tmp_path):
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps([{"token": RED, "name": "red", "metadata": {"tenant": "red"}, "write": False}]))
    tokens = Tokens.read(file)
    assert tokens.holder(f"Bearer {RED}") == Tenant("red", {"tenant": "red"}, write=False)
    for wrong in (None, "", "Bearer", f"Basic {RED}", f"Bearer {RED}x", "Bearer \udcff"):
        assert tokens.holder(wrong) is None
    assert Tokens.parse(f"{ADMIN}\n", "x").holder(f"bearer {ADMIN}") == Tenant()
    for text in (
        "short", "[]", "[1]", "[" * 100_000,
        f'{{"token":"{RED}"}}', f'{{"token":"{RED}"', f"{RED}\t{BLUE}", f"{RED}\n{BLUE}",
        '[{"token": "0123456789abcdef"}]', f'[{{"token": "{RED}", "name": "a/b"}}]',
        f'[{{"token": "{RED}", "name": "a", "metadata": {{"or": "x"}}}}]',
        f'[{{"token": "{RED}", "name": "a", "metadata": {{"team": "2024-01-01"}}}}]',
        f'[{{"token": "{RED}", "name": "a", "metadata": {{"e\u0301quipe": "x"}}}}]',
        f'[{{"token": "{RED}", "name": "a"}}, {{"token": "{BLUE}", "name": "a", "metadata": {{"t": "x"}}}}]',
        f'[{{"token": "{RED}", "name": "a"}}, {{"token": "{RED}", "name": "a", "write": false}}]',
        f'[{{"token": "{RED}", "name": "a", "metadata": {{"t": "\u00e9"}}}},'
        f' {{"token": "{BLUE}", "name": "b", "metadata": {{"t": "e\u0301"}}}}]',
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"token|JSON|entry") as told:
            Tokens.parse(text, "the file")
        assert RED not in str(told.value)


def test_a_server_that_others_could_reach_needs_tokens(tmp_path, monkeypatch):
    monkeypatch.delenv("COMPMEM_TOKENS", raising=False)
    with pytest.raises(ValueError, match="needs tokens"):
        serve(Settings(index=str(tmp_path)), "0.0.0.0", 8000)
