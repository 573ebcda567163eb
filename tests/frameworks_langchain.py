"""Shared by the LangChain tests: a tiny deterministic encoder, a few documents, a scripted chat model."""

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from compmem import IndexConfig, MemoryIndex

WORLD = [
    Document(
        id="orchid",
        page_content="The Orchid device was invented by Dr Elena Marsh. It measures sap flow in plants.",
        metadata={"title": "Orchid device", "year": 1998, "tags": ["botany", "tool"]},
    ),
    Document(
        id="marsh",
        page_content="Elena Marsh was born in Tarnhill. She studied physics before she turned to plants.",
        metadata={"title": "Elena Marsh", "year": 1961, "tags": ["person"]},
    ),
    Document(
        id="tarnhill",
        page_content="Tarnhill is a mining town on the river Esk. Its mayor is Jonas Veld.",
        metadata={"title": "Tarnhill", "year": 1820, "tags": ["place"]},
    ),
    Document(
        id="veld",
        page_content="Jonas Veld was a baker before he entered politics. He plays the cello.",
        metadata={"title": "Jonas Veld", "year": 1970, "tags": ["person"]},
    ),
    Document(
        id="esk",
        page_content="The river Esk rises in the Corrin hills and flows north for eighty miles.",
        metadata={"title": "Esk", "year": 1700, "tags": ["place", "river"]},
    ),
]
QUESTION = "Where was the inventor of the Orchid device born?"

UPDATE = "<think>It helps.</think><check>yes</check><update>{notes}</update><next>{next}</next>"
"""A reply in the format of the chat reader."""


@dataclass
class HashingEncoder:
    """Counts of hashed words: deterministic, without a model, with an optional delay."""

    dim: int = 64
    seconds: float = 0.0
    calls: list[int] = field(default_factory=list)

    def encode(self, texts):
        self.calls.append(len(texts))
        if self.seconds:
            time.sleep(self.seconds)
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                out[row, int(hashlib.md5(word.encode()).hexdigest(), 16) % self.dim] += 1.0
            out[row, 0] += 1e-3
        return out


def make_index(path=None, encoder=None):
    """An index over the hashing encoder."""
    return MemoryIndex.create(path, IndexConfig(encoder=encoder or HashingEncoder()))


class ScriptedChat(BaseChatModel):
    """Returns its replies in order, streamed word by word, and records its prompts."""

    replies: list = Field(default_factory=list)
    asked: list = Field(default_factory=list)
    seconds: float = 0.0

    @property
    def _llm_type(self):
        return "scripted"

    def bind_tools(self, tools, **kwargs):
        return self

    def _next(self, messages):
        self.asked.append(messages)
        time.sleep(self.seconds)
        reply = self.replies[min(len(self.asked), len(self.replies)) - 1]
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, AIMessage) else AIMessage(content=reply)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        reply = self._next(messages)
        words = re.findall(r"\S+\s*", reply.content) or [""]
        for number, word in enumerate(words):
            usage = reply.usage_metadata if number == 0 else None
            extra = {"tool_calls": reply.tool_calls} if reply.tool_calls else {}
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=word, usage_metadata=usage, **extra))
            if run_manager:
                run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk


class Recorder(BaseCallbackHandler):
    """Records every run that starts and ends: kind, name, parent, tags, metadata."""

    def __init__(self):
        self.started, self.ended, self.guard = {}, {}, threading.Lock()

    def _start(self, kind, run_id, parent_run_id, tags, metadata, name, inputs):
        with self.guard:
            self.started[run_id] = {
                "kind": kind, "name": name, "parent": parent_run_id, "tags": tags, "metadata": metadata,
                "inputs": inputs,
            }  # fmt: skip

    def on_chain_start(self, serialized, inputs, *, run_id, parent_run_id=None, tags=None, metadata=None, **kw):
        self._start("chain", run_id, parent_run_id, tags, metadata, kw.get("name"), inputs)

    def on_retriever_start(self, serialized, query, *, run_id, parent_run_id=None, tags=None, metadata=None, **kw):
        self._start("retriever", run_id, parent_run_id, tags, metadata, kw.get("name"), query)

    def on_chat_model_start(self, serialized, messages, *, run_id, parent_run_id=None, tags=None, metadata=None, **kw):
        self._start("chat", run_id, parent_run_id, tags, metadata, kw.get("name"), messages)

    def on_chain_end(self, outputs, *, run_id, **kw):
        self.ended[run_id] = outputs

    def on_retriever_end(self, documents, *, run_id, **kw):
        self.ended[run_id] = documents

    def on_llm_end(self, response, *, run_id, **kw):
        self.ended[run_id] = response

    def on_chain_error(self, error, *, run_id, **kw):
        self.ended[run_id] = error

    on_retriever_error = on_llm_error = on_chain_error

    def tree(self):
        """Runs as `(kind, name, name of the parent)`, in order."""
        return [
            (r["kind"], r["name"], self.started[r["parent"]]["name"] if r["parent"] in self.started else None)
            for r in self.started.values()
        ]
