"""An encoder without a model: texts that share words have similar vectors."""

import time
import zlib
from functools import lru_cache

import numpy as np

from compmem.text.tokenize import terms


class HashEncoder:
    """Each term is a fixed random direction; a text is their sum."""

    def __init__(self, dim: int = 96, seconds: float = 0.0) -> None:
        self.dim = dim
        self.seconds = seconds

    def encode(self, texts):
        time.sleep(self.seconds)
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for term in terms(text) or ["nothing"]:
                row += _direction(term, self.dim)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


@lru_cache(100_000)
def _direction(term, dim):
    return np.random.default_rng(zlib.crc32(term.encode())).standard_normal(dim).astype(np.float32)


class TwoSidedEncoder(HashEncoder):
    """An encoder for German questions and English documents, which records its inputs."""

    def __init__(self):
        super().__init__()
        self.questions = []
        self.texts = []

    def encode(self, texts):
        self.texts += texts
        return super().encode(texts)

    def encode_query(self, texts):
        self.questions += texts
        return super().encode([text.replace("Wer baute die Windmühle?", "Who built the windmill?") for text in texts])
