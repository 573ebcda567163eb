"""A server over two documents in a thread, and clients that ask it."""

import socket
import threading
from contextlib import asynccontextmanager, contextmanager

import httpx
import uvicorn

from compmem import Document, IndexConfig, MemoryIndex
from compmem.serving.app import create_app
from compmem.serving.tenancy import Tenant
from compmem.serving.tokens import Tokens
from tests.hashing import HashEncoder

QUESTION = "Who insures the building that Acme rents?"
ADMIN, RED, BLUE, READER = (f"{name}-0123456789abcdef" for name in ("admin", "red", "blue", "reader"))
TOKENS = Tokens(
    [
        (ADMIN, Tenant("admin")),
        (RED, Tenant("red", {"tenant": "red"})),
        (BLUE, Tenant("blue", {"tenant": "blue"})),
        (READER, Tenant("red", {"tenant": "red"}, write=False)),
    ]
)


DOCUMENTS = [
    Document(id="acme", title="Acme", text="Acme rents the Harbour Building.", metadata={"tenant": "red"}),
    Document(
        id="harbour", title="Harbour Building", text="The Harbour Building is insured by Lloyd.",
        metadata={"tenant": "red"},
    ),
    Document(id="zoo", title="Zoo", text="The Harbour Building is no zoo.", metadata={"tenant": "blue"}),
]  # fmt: skip


def make_index():
    index = MemoryIndex.create(None, IndexConfig(encoder=HashEncoder()))
    index.add(DOCUMENTS)
    return index


@asynccontextmanager
async def calling(index, token=ADMIN, **settings):
    app = create_app(index, tokens=TOKENS, **settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
        yield client


@contextmanager
def listening(app):
    """A real server on loopback; yields its port."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    held = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([held],))
    thread.start()
    try:
        yield held.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def chat(question=QUESTION, **more):
    return {"model": "compmem", "messages": [{"role": "user", "content": question}], **more}
