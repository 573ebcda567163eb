"""Samples as lines of a file, for any questions over any documents.

A line is `{"id", "question", "answers": [text], "documents": [{"id", "title", "text"}]}`. It may have `evidence`, a
list of `{"document": id, "start", "end"}` with offsets in the document's text; `metric`, "sub_em" (default), "all",
"any" or "unanswerable"; `task` (default: the file's name); `tokens` of the documents. A document's `id` and `title` are
optional. Files may be compressed (.gz, .xz).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from compmem.schema import Document
from compmem_research.tasks.multihop import read_lines
from compmem_research.tasks.sample import Metric, Sample, Span


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a file, one at a time.

    Raises:
        ValueError: A line is broken; the message names file and line.
    """
    for number, line in read_lines(path, ("id", "question", "answers", "documents")):
        try:
            yield _sample(line, path.name.split(".")[0])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: not a sample ({type(error).__name__}: {error})") from error
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error


def _sample(line: dict[str, Any], task: str) -> Sample:
    documents = tuple(
        Document(id=_text(d.get("id", "")), title=_text(d.get("title", "")), text=_text(d["text"]))
        for d in line["documents"]
    )  # fmt: skip
    lengths = {d.id: len(d.text) for d in documents}
    if not documents or len(lengths) < len(documents):
        raise ValueError("'documents' is empty, or two of them have the same id")
    evidence = tuple(
        Span(document=_text(e["document"]), start=_number(e["start"]), end=_number(e["end"]))
        for e in line.get("evidence", ())
    )  # fmt: skip
    for span in evidence:
        if not 0 <= span.start < span.end <= lengths.get(span.document, 0):
            raise ValueError(f"evidence {span.start}-{span.end} is outside the document {span.document!r}")
    metric: Metric = line.get("metric", "sub_em")
    if metric not in get_args(Metric):
        raise ValueError(f"metric={metric!r}; it is one of {', '.join(get_args(Metric))}")
    answers = tuple(_text(a) for a in line["answers"])
    if isinstance(line["answers"], str) or (not answers and metric != "unanswerable"):
        raise ValueError("'answers' is not a list of texts, or is empty")
    return Sample(
        id=str(line["id"]),
        task=_text(line.get("task", task)),
        question=_text(line["question"]),
        answers=answers,
        documents=documents,
        evidence=evidence,
        metric=metric,
        tokens=_number(line.get("tokens", 0)),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value
