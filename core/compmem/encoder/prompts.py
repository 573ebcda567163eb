"""The instructions that an embedding model expects before questions and before documents."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath


@dataclass(frozen=True, slots=True)
class Prompts:
    """The text before every question and before every document; empty if a model expects none."""

    query: str = ""
    document: str = ""


_FAMILIES = (
    (re.compile(r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?"), Prompts("query: ", "passage: ")),
    (
        re.compile(r"bge-(small|base|large)-en(-v1\.5)?"),
        Prompts("Represent this sentence for searching relevant passages: "),
    ),
    (re.compile(r"bge-(small|base|large)-zh(-v1\.5)?"), Prompts("为这个句子生成表示以用于检索相关文章：")),
)
"""Prompts from the cards of models whose folders do not contain them."""


def prompts_of(name: str, configured: object) -> Prompts:
    """The prompts in a model's folder, else those of its family, else none.

    Args:
        name: Name or folder of the model.
        configured: `prompts` of its `config_sentence_transformers.json`.
    """
    given = configured if isinstance(configured, Mapping) else {}
    named = {key: value for key, value in given.items() if isinstance(value, str) and value}
    document = next((named[key] for key in ("document", "passage", "corpus") if key in named), "")
    if named:
        return Prompts(named.get("query", ""), document)
    model = PurePath(name).name.lower()
    return next((prompts for pattern, prompts in _FAMILIES if pattern.fullmatch(model)), Prompts())
