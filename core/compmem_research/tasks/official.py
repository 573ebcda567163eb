"""The data sets' original files as records of `multihop`, read one by one.

* `hotpotqa`: a JSON array of `{"_id", "question", "answer", "type", "supporting_facts": [[title, sentence number]],
  "context": [[title, [sentence]]]}`. `2wikimultihopqa`: the same, and `"evidences": [[subject, relation, object]]`.
* `musique`: lines `{"id", "question", "answer", "answer_aliases", "paragraphs": [{"title", "paragraph_text",
  "is_supporting"}], "question_decomposition": [{"question", "answer", "paragraph_support_idx"}]}`.
* `squad`: a JSON object with the array `data` of `{"title", "paragraphs": [{"context", "qas": [{"id", "question",
  "answers": [{"text", "answer_start"}]}]}]}` (1.1 and 2.0).

Questions that a file marks as unanswerable (`answerable`, `is_impossible`) are skipped: `contexts` makes contexts
without the answer of any question.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from compmem_research.tasks.multihop import UNREADABLE, open_text, read_lines
from compmem_research.tasks.singlehop import SingleHop

Form = Literal["hotpotqa", "2wikimultihopqa", "musique", "squad"]
"""The data set that a file is from."""
Record = dict[str, Any]

_BLOCK = 1 << 20
"""Characters read at a time. An error this far before the end of the buffer is a broken item, not a truncated one."""


def records(path: Path, form: Form) -> Iterator[Record]:
    """The questions of a data set's original file as records of `multihop`, one by one.

    Raises:
        ValueError: The file is broken; the message names file and place.
    """
    if form not in get_args(Form):
        raise ValueError(f"form={form!r}; it is one of {', '.join(get_args(Form))}")
    take: Callable[[dict[str, Any]], Iterable[Record]]
    if form == "musique":
        items = ((f"{path}:{n}", line) for n, line in read_lines(path, ("id", "question", "answer", "paragraphs")))
        take = _musique
    else:
        items = ((f"{path}: item {n}", item) for n, item in _items(path, "data" if form == "squad" else None))
        take = _squad if form == "squad" else lambda item: [_hotpotqa(item, form)]
    for place, item in items:
        try:
            found = list(take(item))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"{place}: not in the format of {form!r} ({type(error).__name__}: {error})") from error
        yield from found


def write_records(path: Path, lines: Iterable[Record]) -> int:
    """Write records as JSONL, compressed if the name ends in .gz or .xz; returns how many."""
    with open_text(path, "wt") as file:
        return sum(1 for line in lines if file.write(json.dumps(line, ensure_ascii=False) + "\n"))


def _hotpotqa(item: dict[str, Any], form: str) -> Record:
    supporting: dict[str, list[int]] = {}
    for title, sentence in item["supporting_facts"]:
        supporting.setdefault(title, []).append(sentence)
    paragraphs = [
        {"title": title, "sentences": said, "supporting": sorted(set(supporting.get(title, [])))}
        for title, said in item["context"]
    ]
    record = {
        "id": item["_id"], "dataset": form, "type": item.get("type", ""), "question": item["question"],
        "answer": item["answer"], "aliases": [], "paragraphs": paragraphs,
    }  # fmt: skip
    return record | {"evidences": item["evidences"]} if "evidences" in item else record


def _musique(item: dict[str, Any]) -> Iterator[Record]:
    if not item.get("answerable", True):
        return
    titles = [p["title"] for p in item["paragraphs"]]
    hops = [h for h in item.get("question_decomposition", []) if h["paragraph_support_idx"] is not None]
    paragraphs = [
        {"title": p["title"], "sentences": [p["paragraph_text"]], "supporting": [0] if p["is_supporting"] else []}
        for p in item["paragraphs"]
    ]
    yield {
        "id": item["id"], "dataset": "musique", "type": item["id"].split("__")[0], "question": item["question"],
        "answer": item["answer"], "aliases": item.get("answer_aliases", []), "paragraphs": paragraphs,
        "evidences": [[titles[h["paragraph_support_idx"]], h["question"], h["answer"]] for h in hops],
    }  # fmt: skip


def _squad(item: dict[str, Any]) -> Iterator[Record]:
    for paragraph in item["paragraphs"]:
        for asked in paragraph["qas"]:
            if asked.get("is_impossible", False):
                continue
            yield SingleHop(
                id=asked["id"],
                dataset="squad",
                title=item["title"].replace("_", " "),
                context=paragraph["context"],
                question=asked["question"],
                answers=tuple(dict.fromkeys(a["text"] for a in asked["answers"])),
                start=asked["answers"][0]["answer_start"],
            ).record()


def _items(path: Path, key: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file's array, or of the array under a key of its object, numbered from 1."""
    with open_text(path) as file:
        try:
            rest = _array(file, path, key)
            yield from _objects(file, path, rest)
        except UNREADABLE as error:
            raise ValueError(f"{path}: cannot be read ({error})") from error


def _array(file: TextIO, path: Path, key: str | None) -> str:
    """The text after the bracket that opens the array."""
    text = file.read(_BLOCK)
    start = text.find("[") if key is None else text.find("[", text.find(f'"{key}"') + 1)
    opening = text[: max(start, 0)].strip().removeprefix("\ufeff")
    if start < 0 or (opening if key is None else f'"{key}"' not in opening):
        raise ValueError(f"{path}: no array{f' named {key!r}' if key else ''} at its beginning")
    return text[start + 1 :]


def _objects(file: TextIO, path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    decode, number, at = json.JSONDecoder().raw_decode, 0, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if text[at : at + 1] == "]":
            return
        try:
            item, end = decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            broken = not isinstance(error, json.JSONDecodeError) or len(text) - error.pos > _BLOCK
            more = "" if broken else file.read(max(_BLOCK, len(text) - at))
            if not more:
                raise ValueError(f"{path}: item {number + 1}: not JSON, or truncated ({error})") from error
            text, at = text[at:] + more, 0
            continue
        number += 1
        if not isinstance(item, dict):
            raise ValueError(f"{path}: item {number}: not a JSON object")
        yield number, item
        at = end
