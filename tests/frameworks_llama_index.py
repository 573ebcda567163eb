"""Shared by the LlamaIndex tests: a tiny deterministic encoder, a few documents, small fake LLMs."""

import asyncio
import re
import time
import zlib

import numpy as np
from llama_index.core.llms import ChatMessage, ChatResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document
from pydantic import PrivateAttr

from compmem import RecallConfig
from compmem.text.tokenize import STOPWORDS
from llama_index_compmem import CompMemIndex

QUESTION = "Where was the inventor of the Orchid device born?"

WORLD = {
    "orchid": ("Orchid device", 1998, ["botany", "tool"],
               "The Orchid device was invented by Dr Elena Marsh. It measures sap flow in plants."),
    "marsh": ("Elena Marsh", 1961, ["person"],
              "Elena Marsh was born in Tarnhill. She studied physics before she turned to plants."),
    "tarnhill": ("Tarnhill", 1820, ["place"], "Tarnhill is a mining town on the river Esk. Its mayor is Jonas Veld."),
    "veld": ("Jonas Veld", 1970, ["person"], "Jonas Veld was a baker before he entered politics. He plays the cello."),
    "esk": ("Esk", 1700, ["place", "river"], "The river Esk rises in the Corrin hills and flows north to the sea."),
}  # fmt: skip


def documents():
    """The world as documents of LlamaIndex, with stable ids."""
    return [
        Document(doc_id=name, text=text, metadata={"title": title, "year": year, "tags": tags})
        for name, (title, year, tags, text) in WORLD.items()
    ]


def names(nodes):
    """The ids of the documents that nodes with scores are of."""
    return [n.node.ref_doc_id for n in nodes]


class HashingEncoder:
    """Hashed words that are no stopwords: deterministic, without a model, with an optional delay."""

    def __init__(self, dim=64, seconds=0.0):
        self.dim, self.seconds, self.calls = dim, seconds, 0

    def encode(self, texts):
        self.calls += 1
        if self.seconds:
            time.sleep(self.seconds)
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in set(re.findall(r"\w+", text.lower())) - STOPWORDS:
                out[row, zlib.crc32(word.encode()) % self.dim] += 1.0
            out[row, 0] += 1e-3
        return out


def make_index(path=None, encoder=None, **options):
    """The documents in an index with the hashing encoder, one node per document."""
    return CompMemIndex.from_documents(
        documents(),
        path=path,
        embed_model=encoder or HashingEncoder(),
        transformations=[SentenceSplitter(chunk_size=256, chunk_overlap=0)],
        **options,
    )


def read_reply(prompt):
    """A valid reply of a chat model: notes of every sentence in the blocks that contains a name."""
    if "Blocks to read now" not in prompt:
        return "The answer is Tarnhill."
    notes = re.search(r"<memory>\n(.*?)\n</memory>", prompt, re.DOTALL)[1].replace("(none yet)", "")
    blocks = re.findall(r"<block>\n(.*?)\n</block>", prompt, re.DOTALL)
    found = " ".join(block.split("\n\n", 1)[-1].split("text:\n")[-1] for block in blocks)
    known = f"{notes} {found}".strip()
    end = "end" if "born in Tarnhill" in known and "invented by" in known else "continue"
    return f"<think>Hm.</think><check>yes</check><update>{known}</update><next>{end}</next>"


class FakeLLM(CustomLLM):
    """A chat model whose replies are a function of the last message, separate for sync and async."""

    _reply = PrivateAttr(default=None)
    _seconds = PrivateAttr(default=0.0)
    _calls = PrivateAttr(default_factory=list)

    def __init__(self, reply=read_reply, seconds=0.0):
        super().__init__()
        self._reply, self._seconds, self._calls = reply, seconds, []

    @property
    def calls(self):
        return self._calls

    @property
    def metadata(self):
        return LLMMetadata(is_chat_model=True)

    def _answer(self, kind, messages):
        self._calls.append((kind, messages))
        reply = self._reply(messages[-1].content)
        if isinstance(reply, Exception):
            raise reply
        return reply

    @staticmethod
    def _streamed(text):
        so_far = ""
        for piece in re.findall(r"\S+\s*", text):
            if piece.strip() == "<break>":
                raise RuntimeError("connection lost")
            so_far += piece
            yield ChatResponse(message=ChatMessage(role="assistant", content=so_far), delta=piece)

    @llm_chat_callback()
    def chat(self, messages, **kwargs):
        time.sleep(self._seconds)
        return ChatResponse(message=ChatMessage(role="assistant", content=self._answer("chat", messages)))

    @llm_chat_callback()
    def stream_chat(self, messages, **kwargs):
        return self._streamed(self._answer("stream_chat", messages))

    @llm_chat_callback()
    async def achat(self, messages, **kwargs):
        await asyncio.sleep(self._seconds)
        return ChatResponse(message=ChatMessage(role="assistant", content=self._answer("achat", messages)))

    @llm_chat_callback()
    async def astream_chat(self, messages, **kwargs):
        async def pieces():
            for piece in self._streamed(self._answer("astream_chat", messages)):
                yield piece

        return pieces()

    def complete(self, prompt, formatted=False, **kwargs):
        raise AssertionError("a chat model is asked to chat")

    stream_complete = complete


QUOTED = "The Orchid device was invented by Dr Elena Marsh. Elena Marsh was born in Tarnhill."


READING = RecallConfig(reader="chat")
"""The LLM reads in every step."""


def failing(prompt):
    if "born in" in prompt:
        raise RuntimeError("rate limit")
    return read_reply(prompt)
