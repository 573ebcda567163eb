"""What reads a recalled block and writes the answer: by quoting, with a chat model, or with the backbone itself."""

from compmem.readers.apart import Apart
from compmem.readers.calls import ChatModel
from compmem.readers.chat import NOTHING_FOUND, ChatPrompts, ChatReader
from compmem.readers.extractive import ExtractiveReader
from compmem.readers.latent import LatentReader
from compmem.readers.prompts import LatentPrompts

__all__ = [
    "NOTHING_FOUND",
    "Apart",
    "ChatModel",
    "ChatPrompts",
    "ChatReader",
    "ExtractiveReader",
    "LatentPrompts",
    "LatentReader",
]
