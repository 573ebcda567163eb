"""Packed text: a folder with a tokenizer and a small file of tokens, made once for all stages."""

import lzma
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from compmem.errors import CheckpointError
from compmem_research.training.from_scratch import wrap_tokenizer

TOKENS, TOKENIZER = "tokens.safetensors.xz", "tokenizer"
HELD_OUT = 0.02
"""Share of the tokens, at the end, that is held out."""

TokenIds = NDArray[np.unsignedinteger[Any]]


class PackedText:
    """Packed tokens; windows of them start anywhere.

    Args:
        folder: A folder that `compmem train text` made.
        vocabulary: Vocabulary size of the tokenizer.

    Raises:
        CheckpointError: There are no tokens, or they are from another tokenizer.
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        file = folder / TOKENS
        try:
            kept = load(lzma.decompress(file.read_bytes()))
            tokens, known = kept["text"], int(kept["vocabulary"][0])
        except (OSError, lzma.LZMAError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{str(file)!r} has no tokens: {error}") from error
        if known != vocabulary:
            raise CheckpointError(
                f"{str(file)!r} was packed with a tokenizer of {known} tokens, and this one has {vocabulary}: pack the "
                "text with the model's own, by `compmem train text` with the setting 'tokenizer'"
            )
        held = int(len(tokens) * HELD_OUT)
        self._parts = {"train": tokens[: len(tokens) - held], "held": tokens[len(tokens) - held :]}

    def window(self, rng: np.random.Generator, size: int, *, held: bool) -> list[int]:
        """This many tokens from a random position.

        Raises:
            ValueError: There are fewer tokens.
        """
        tokens = self._parts["held" if held else "train"]
        if len(tokens) < size:
            raise ValueError(f"a window of {size} tokens is longer than the {len(tokens)} tokens of text")
        at = int(rng.integers(0, len(tokens) - size + 1))
        window: list[int] = tokens[at : at + size].tolist()
        return window


def pack_tokens(tokens: TokenIds, vocabulary: int) -> bytes:
    """The content of a file of tokens, for a tokenizer with this vocabulary size."""
    return lzma.compress(save({"text": tokens, "vocabulary": np.array([vocabulary])}))


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder that `compmem train text` made.

    Raises:
        CheckpointError: There is none.
    """
    from tokenizers import Tokenizer

    file = folder / TOKENIZER / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{str(folder)!r} has no tokenizer: make one with `compmem train text`")
    return wrap_tokenizer(Tokenizer.from_file(str(file)))
