"""Questions about one text: lines `{"context", "question", "answer", "start"}`, with `id`, `dataset`, `title` optional.

`start` is the offset of the answer in the context, -1 if the answer is not a part of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compmem.text.sentences import sentences
from compmem_research.tasks.multihop import read_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleHop:
    """A question that one text answers."""

    id: str
    dataset: str
    title: str
    context: str
    question: str
    answers: tuple[str, ...]
    """The first one is at `start`."""
    start: int
    """Offset of the first answer in the context; -1 if it is not a part of it."""

    def record(self) -> dict[str, Any]:
        """The question as a record of `multihop` with one paragraph, whose supporting sentence contains the answer.

        If it is only known that the text answers the question, all its sentences support it.
        """
        spans = sentences(self.context) or [(0, len(self.context))]
        held = [i for i, (a, b) in enumerate(spans) if a <= self.start < b]
        said = [self.context[a:b] for a, b in spans]
        paragraph = {"title": self.title, "sentences": said, "supporting": held or list(range(len(spans)))}
        return {
            "id": self.id,
            "dataset": self.dataset,
            "type": "single",
            "question": self.question,
            "answer": self.answers[0],
            "aliases": list(self.answers[1:]),
            "paragraphs": [paragraph],
        }


def read_singlehop(path: Path) -> Iterator[SingleHop]:
    """The questions of a file, one by one.

    Raises:
        ValueError: A line is broken, or its answer is not at its offset; the message names file and line.
    """
    for number, line in read_lines(path, ("context", "question", "answer", "start")):
        place = f"{path}:{number}"
        start, aliases = line["start"], line.get("aliases", [])
        texts = [line["context"], line["question"], line["answer"], *(aliases if isinstance(aliases, list) else [None])]
        if not all(isinstance(t, str) for t in texts) or type(start) is not int:
            raise ValueError(
                f"{place}: context, question, answer are texts, start is a number, aliases a list of texts"
            )
        if start >= 0 and not line["context"].startswith(line["answer"], start):
            raise ValueError(f"{place}: {line['answer']!r} is not at {start} of the context")
        yield SingleHop(
            id=str(line.get("id", number)),
            dataset=str(line.get("dataset", "")),
            title=str(line.get("title", "")),
            context=line["context"],
            question=line["question"],
            answers=(line["answer"], *aliases),
            start=start,
        )
