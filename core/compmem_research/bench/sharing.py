"""An encoder that reads each paragraph once, even if several contexts contain it, and reports the cost of reading.

The contexts of a benchmark's questions come from one corpus, and encoding is most of the cost of an index. Each
question still has its own index over its own context. Only the vectors of a paragraph are reused, and the seconds of
its first encoding are charged again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from compmem.encoder import LoadedEncoder, TextWithSpans, paragraphs
from compmem.schema import Vectors
from compmem_research.bench.clock import Times, none, now

Key = tuple[str, str, tuple[tuple[int, int], ...]]
"""Label, text and spans of a paragraph."""


@dataclass(slots=True)
class ParagraphCache:
    """The engine of an encoder that reads each paragraph separately, as the inner encoder does.

    Except for rounding, every text has the vectors of that encoder; its whole vector is the mean over all of its
    tokens.
    """

    inner: LoadedEncoder
    charged: Times = field(default_factory=none)
    """Time of reading all requested texts without sharing."""
    spent: Times = field(default_factory=none)
    """Time of the actual reading."""
    _known: dict[Key, tuple[Vectors, Times]] = field(default_factory=dict)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of documents `[texts, dim]`; only texts with spans are shared."""
        return self.inner.encode(texts)

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions `[texts, dim]`."""
        return self.inner.encode_query(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return self.inner.count_tokens(texts)

    def encode_with_spans(self, texts: Sequence[TextWithSpans]) -> list[Vectors]:
        """Vectors `[1 + spans, dim]` of each text and its spans, not normalised."""
        cut = [list(_paragraphs(text)) for text in texts]
        self._read([p for pieces in cut for p in pieces])
        out: list[Vectors] = []
        for pieces in cut:
            found = [self._known[_key(p)] for p in pieces]
            self.charged = self.charged + np.sum([times for _, times in found], axis=0)
            whole = np.sum([v[0] for v, _ in found], axis=0)
            out.append(np.concatenate([whole[None], *(v[1:] for v, _ in found)]))
        return out

    def _read(self, paragraphs: Sequence[TextWithSpans]) -> None:
        new = list({_key(p): p for p in paragraphs if _key(p) not in self._known}.values())
        if not new:
            return
        began = now()
        # The engine's own vectors: those of the encoder are normalised, and cannot be averaged over tokens.
        vectors = self.inner._engine.encode_with_spans(new)
        took = now() - began
        self.spent = self.spent + took
        share = took / sum(len(p.text) for p in new)
        for paragraph, found in zip(new, vectors, strict=True):
            self._known[_key(paragraph)] = found, share * len(paragraph.text)


def shared(inner: LoadedEncoder) -> tuple[LoadedEncoder, ParagraphCache]:
    """An encoder that reads each paragraph once, and its engine, which records the time."""
    engine = ParagraphCache(inner)
    dim = [] if inner.dim is None else [inner.dim]
    encoder = LoadedEncoder(name=inner.name, max_tokens=inner.max_tokens, dtype=inner.dtype, _engine=engine, _dim=dim)
    return encoder, engine


def _key(text: TextWithSpans) -> Key:
    return text.label, text.text, tuple(text.spans)


def _paragraphs(text: TextWithSpans) -> Iterator[TextWithSpans]:
    """The text in the pieces that the encoder reads, each with the spans inside it."""
    groups = paragraphs(text.text, text.spans)
    if len(groups) < 2:
        yield text
        return
    for first, last in groups:
        start, end = text.spans[first][0], text.spans[last - 1][1]
        spans = tuple((a - start, b - start) for a, b in text.spans[first:last])
        yield TextWithSpans(text.label, text.text[start:end], spans)
