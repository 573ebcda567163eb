"""Before stage 0: reads plain text as a stream, trains a tokenizer on it, and packs its tokens into one small file."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from compmem.backbone import load_tokenizer
from compmem.errors import CheckpointError
from compmem_research.tasks.multihop import read_lines
from compmem_research.tasks.names import draw
from compmem_research.tasks.relations import RELATIONS
from compmem_research.training.data.packed import TOKENIZER, TOKENS, TokenIds, pack_tokens
from compmem_research.training.from_scratch import REPLY_TAGS, train_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPreparation:
    """Settings: texts to a tokenizer and packed tokens.

    Raises:
        ValueError: The vocabulary does not fit in two bytes.
    """

    texts: tuple[Path, ...]
    """Files of `{"text"}` lines, which may be compressed."""
    out: Path
    tokenizer: str | None = None
    """Folder or name of a model whose tokenizer is used. None: a new one is trained."""
    vocabulary: int = 4096
    learn_from: int = 20_000_000
    """Characters of training text for the tokenizer."""
    made_up: int = 0
    """Lines of made-up facts for training the tokenizer, so that their words and names take few tokens."""
    tokens: int = 12_000_000
    """Most tokens that are packed."""
    words: tuple[str, ...] = REPLY_TAGS
    """Strings that are one token each."""

    def __post_init__(self) -> None:
        if not 0 < self.vocabulary <= 65_536:
            raise ValueError(f"vocabulary={self.vocabulary!r} must be between 1 and 65536")


def train(settings: TextPreparation) -> dict[str, Any]:
    """Train the tokenizer and pack the tokens; returns their numbers.

    Raises:
        ValueError: A file has a broken line.
        CheckpointError: The result cannot be written.
    """
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer)
    else:
        sample = itertools.chain(_some(read_texts(settings.texts), settings.learn_from), made_up(settings.made_up))
        tokenizer = train_tokenizer(sample, settings.vocabulary, words=settings.words)
    tokens = np.concatenate([*_packed(settings, tokenizer)])[: settings.tokens]
    file = settings.out / TOKENS
    try:
        tokenizer.save_pretrained(settings.out / TOKENIZER)
        file.write_bytes(pack_tokens(tokens, len(tokenizer)))
    except OSError as error:
        raise CheckpointError(f"{str(settings.out)!r} cannot be written: {error}") from error
    return {"vocabulary": len(tokenizer), "tokens": len(tokens), "bytes": file.stat().st_size}


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """The texts of files of `{"text"}` lines, one by one.

    Raises:
        ValueError: A line is broken; the message names file and line.
    """
    for file in files:
        for _, line in read_lines(file, ("text",)):
            yield str(line["text"])


def made_up(lines: int, seed: int = 0) -> Iterator[str]:
    """Statement, question and answer of made-up facts, in the wordings of the training split."""
    chance = Random(seed)
    for _ in range(lines):
        relation = chance.choice(RELATIONS)
        subject, answer = (draw(chance, kind, "train").name for kind in (relation.subject, relation.object))
        statement = chance.choice(relation.train.statements).format(s=subject, o=answer)
        yield f"{statement} {chance.choice(relation.train.questions).format(s=subject)} {answer}"


def _some(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _packed(settings: TextPreparation, tokenizer: Any) -> Iterator[TokenIds]:
    """The tokens of each text and an end token; a control token spelled in a text is encoded as letters."""
    plain = tokenizer.backend_tokenizer
    plain.encode_special_tokens = True
    texts, count = read_texts(settings.texts), 0
    kind: type[np.unsignedinteger[Any]] = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    while count < settings.tokens and (group := list(itertools.islice(texts, 256))):
        for made in plain.encode_batch(group, add_special_tokens=False):
            count += len(made.ids) + 1
            yield np.array([*made.ids, tokenizer.eos_token_id], dtype=kind)
    plain.encode_special_tokens = False
