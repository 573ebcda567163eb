"""Terminal output of the commands: answers, steps and recalled blocks."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compmem.cli.answer_text import cost_text, gate_decisions, location, new_notes, printable, quotes
from compmem.schema import Answer, Chunk, Recall, Step

SNIPPET = 240
"""Characters of a block's text in a table."""


def plain(text: str, style: str = "") -> Text:
    """Untrusted text as one printable line: no markup, no control characters."""
    return Text(" ".join(printable(text).split()), style=style)


def table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """A table with these columns; those in `numbers` are right-aligned."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", expand=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def step_trace(console: Console, step: Step, before: str) -> None:
    """One step: the blocks and scores, the change of the memory, the decisions of the gates."""
    head = Text(f"step {step.number}", style="bold cyan")
    if step.request:
        head += Text(" for: ", style="dim") + plain(step.request)
    console.print(head + Text(f"  {step.candidates} candidates, {step.seconds:.2f} s", style="dim"))
    for recall in step.recalls:
        score = Text(f"{recall.score:.2f} ", style="green" if step.updated else "yellow")
        console.print(Padding(score + Text(location(recall)), (0, 0, 0, 2), expand=False))
    for line in new_notes(step, before).split("\n"):
        if line.strip():
            console.print(Padding(Text("+ ", style="green") + plain(line), (0, 0, 0, 4), expand=False))
    console.print(Padding(Text(", ".join(gate_decisions(step)), style="dim"), (0, 0, 0, 4), expand=False))


def sources(console: Console, answer: Answer) -> None:
    """A table of the answer's sources."""
    if not answer.sources:
        return
    made = table("", "score", "document", "section", "characters", "says", numbers=("score", "characters"))
    for number, source in enumerate(answer.sources, start=1):
        chunk = source.chunk
        kept = quotes(answer, source)
        shown_text = max(kept, key=lambda quote: quote.score).text if kept else chunk.text
        named = Text(f"[{number}]" if source.cited else str(number))
        made.add_row(
            named, f"{source.score:.2f}", plain(chunk.document_id), plain(_section(chunk)),
            f"{chunk.start}-{chunk.end}", plain(_snippet(shown_text)),
        )  # fmt: skip
    console.print(made)


def footer(console: Console, answer: Answer) -> None:
    """Why the loop ended and its cost, on one line."""
    console.print(Text(f"ended by: {answer.stop_reason}; {cost_text(answer.usage)}", style="dim"))


def recalls_table(recalls: Iterable[Recall]) -> Table:
    """Recalled blocks, best first."""
    made = table("", "score", "document", "section", "characters", "text", numbers=("score", "characters"))
    for rank, recall in enumerate(recalls, start=1):
        chunk = recall.chunk
        made.add_row(
            str(rank), f"{recall.score:.2f}", plain(chunk.document_id), plain(_section(chunk)),
            f"{chunk.start}-{chunk.end}", plain(_snippet(chunk.text)),
        )  # fmt: skip
    return made


def facts_table(facts: Mapping[str, object]) -> Table:
    """Names and values."""
    made = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        made.add_row(Text(name, style="bold"), plain(f"{value:,}" if isinstance(value, int) else str(value)))
    return made


def _section(chunk: Chunk) -> str:
    return " › ".join(h for h in (chunk.headings or (chunk.title,)) if h != chunk.document_id)


def _snippet(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SNIPPET else text[: SNIPPET - 1].rstrip() + "…"
