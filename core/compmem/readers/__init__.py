"""Readers: they read a recalled block and write the answer, by quoting, with a chat model, or with the backbone."""

from compmem.readers.answers import NOTHING_FOUND
from compmem.readers.chat import ChatPrompts, ChatReader
from compmem.readers.chat_model import ChatModel, pieces
from compmem.readers.endpoint import Endpoint
from compmem.readers.extractive import ExtractiveReader
from compmem.readers.latent import OVERHEAD, LatentReader
from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem.readers.replies import Reply, parse_step_reply, without_thinking
from compmem.readers.with_writer import ReaderWithWriter

__all__ = [
    "NOTHING_FOUND",
    "OVERHEAD",
    "ChatModel",
    "ChatPrompts",
    "ChatReader",
    "Endpoint",
    "ExtractiveReader",
    "LatentPrompts",
    "LatentReader",
    "ReaderWithWriter",
    "Reply",
    "StepPrompts",
    "parse_step_reply",
    "pieces",
    "without_thinking",
]
