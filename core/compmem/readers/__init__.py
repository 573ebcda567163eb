"""What reads a recalled block and writes the answer: by quoting, with a chat model, or with the backbone itself."""

from compmem.readers.apart import Apart
from compmem.readers.calls import ChatModel, pieces
from compmem.readers.chat import NOTHING_FOUND, ChatPrompts, ChatReader
from compmem.readers.endpoint import Endpoint
from compmem.readers.extractive import ExtractiveReader
from compmem.readers.latent import OVERHEAD, LatentReader
from compmem.readers.prompts import LatentPrompts, StepPrompts
from compmem.readers.replies import Reply, spoken, understand

__all__ = [
    "NOTHING_FOUND",
    "OVERHEAD",
    "Apart",
    "ChatModel",
    "ChatPrompts",
    "ChatReader",
    "Endpoint",
    "ExtractiveReader",
    "LatentPrompts",
    "LatentReader",
    "Reply",
    "StepPrompts",
    "pieces",
    "spoken",
    "understand",
]
