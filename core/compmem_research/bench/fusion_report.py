"""What the rows of `bench fusion` say: means with intervals, by method and ratio."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from compmem_research.metrics import f1, mean_figures

COLUMNS: Final = (
    "model", "system", "ratio", "pruning", "window", "stored", "questions", "F1", "F1 beside text",
    "F1 beside untrained", "EM", "agreement", "loss", "loss beside text", "loss beside attention",
    "first token, s (processor)", "compression, s of processor", "MiB of states",
)  # fmt: skip

READING: Final = (
    "Each question is asked over its gold paragraphs and others of its own context, the first hop first and the others "
    "in a random order. With a window, the blocks were made while all paragraphs of that context were read in their "
    "order, as one document, in passes of so many tokens; else each was read alone. `text` is one plain pass over the "
    "same tokens in the same order; `none` leaves blocks as they are stored; `trained` is trained memory. F1 and exact "
    "match in per cent, with 95 % bootstrap intervals; agreement is the F1 of an answer against that of the same model "
    "from text, right or wrong, and tells what memory changes; loss is the cross entropy of the right answer, in nats "
    "a token, which tells methods apart on fewer questions. Beside text or attention: the mean difference, question by "
    "question, from the same model's answers from text, or from pruning by attention at the same ratio; beside "
    "untrained: from the states of the model above whose memory is not trained, chosen in the same way. The seconds to "
    "the first token count what a method computes again, and not the compression, which is done once for an index "
    "(with a window, of the whole context); in brackets those of the processor."
)


class Condition(NamedTuple):
    """What a question is answered from: text, or KV states that were made, stored and read in one way."""

    model: str
    method: str = "text"
    ratio: int = 0
    pruning: str = "attention"
    window: int = 0
    kv: str = "bf16"

    @property
    def system(self) -> str:
        """The name under which a row is kept."""
        name = f"{self.model} {self.method}@{self.ratio} {self.pruning}" + (f" {self.window}" if self.window else "")
        return name if self.kv == "bf16" else f"{name} {self.kv}"


def summary(
    rows: Sequence[Mapping[str, Any]], models: Sequence[str], trained: Mapping[str, str]
) -> list[dict[str, Any]]:  # fmt: skip
    """The means of each system at each ratio, in the order of the models, text first.

    Args:
        rows: The answers.
        models: Names of the models.
        trained: How the states of those with trained memory are chosen.
    """
    groups: dict[Condition, list[Mapping[str, Any]]] = {}
    for row in sorted(_compared(rows), key=lambda r: str(r["id"])):  # their order decides nothing
        known = {name: row[name] for name in Condition._fields if name in row}
        groups.setdefault(Condition(**known), []).append(row)

    def beside(group: Sequence[Mapping[str, Any]], other: Condition, name: str, *figures: str) -> dict[str, Any]:
        changes = (_change(f, name, group, groups.get(other, []), scale=1 if f == "loss" else 100) for f in figures)
        return {figure: value for change in changes for figure, value in change.items()}

    out, untrained = list[dict[str, Any]](), ""
    for model in models:
        untrained = untrained if model in trained else model
        own = [(key, group) for key, group in groups.items() if key.model == model]
        for key, group in sorted(own, key=lambda g: g[0].ratio):
            line = {"model": model, "method": key.method, "ratio": key.ratio, "pruning": key.pruning}
            line |= {"window": key.window} if key.window else {}
            line |= {"kv": key.kv} if key.kv != "bf16" else {}
            line |= _means(group)
            if key.pruning != "attention":
                line |= beside(group, key._replace(pruning="attention"), "change", "loss")
            if key.ratio:
                line |= beside(group, Condition(model), "to text", "f1", "loss")
            if key.ratio and key.method != "none":
                line |= beside(group, key._replace(method="none"), "to none", "agreement")
            if key.window:
                line |= beside(group, key._replace(window=0), "to alone", "f1", "agreement")
            if key.kv != "bf16":
                line |= beside(group, key._replace(kv="bf16"), "to bf16", "f1", "agreement", "loss")
            if key.ratio and model in trained:
                stock = key._replace(model=untrained, pruning=trained[model])
                line |= beside(group, stock, "to untrained", "f1", "agreement")
            if key.ratio and "kvzap" in (key.pruning, trained.get(model)):
                # What is predicted: the same model's rows, or those of the trained model that was not fitted yet.
                fitted = next((name for name in models if trained.get(name) == "kvzip-heads"), model)
                predicted = key._replace(model=fitted) if model in trained else key._replace(pruning="kvzip-heads")
                line |= beside(group, predicted, "to kvzip-heads", "f1", "loss")
            out.append(line)
    return out


def cells(row: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    shares = [
        f"{row[n]:.1f} [{row[f'{n} 95%'][0]:.0f}, {row[f'{n} 95%'][1]:.0f}]" if n in row else "-"
        for n in ("f1", "f1 to text", "f1 to untrained", "em", "agreement")
    ]
    clock, processor = row["first_seconds"]
    losses = [
        f"{row[n]:.2f} [{row[f'{n} 95%'][0]:.2f}, {row[f'{n} 95%'][1]:.2f}]" if n in row else "-"
        for n in ("loss", "loss to text", "loss change")
    ]
    ratio, pruning = "-" if row["ratio"] == 0 else str(row["ratio"]), row["pruning"] if row["ratio"] > 1 else "-"
    size, made = (
        (f"{row['bytes'] / (1 << 20):.1f}", f"{row['compress_seconds'][1]:.2f}") if row["ratio"] else ("-", "-")
    )
    first = f"{clock:.2f} ({processor:.2f})"
    named = [row["model"], row["method"], ratio, pruning, str(row.get("window", "-"))]
    named += [row.get("kv", "bf16") if row["ratio"] else "-", str(row["questions"])]
    return [*named, *shares, *losses, first, made, size]


def pages(run: Mapping[str, Any]) -> Iterator[str]:
    """The result as Markdown."""
    settings = run["settings"]
    yield from (READING, "")
    recalled = f"Up to {settings['blocks']} paragraphs"
    if size := settings.get("chunk_tokens"):
        recalled += f" in the order of the context, joined to chunks of at most {size:,} tokens"
    if context := settings.get("context_tokens"):
        recalled = f"Of a context of {context:,} tokens the chunks of at most {size:,} that hold gold paragraphs"
    yield (
        f"{recalled}; a share of {settings['share']} or the first "
        f"{settings['first']} tokens of a block computed again, at most {settings['max_tokens']} tokens written."
    )
    sets: Mapping[str, Any] = run.get("by_set", {})
    for name, rows in ({"all sets": run["fusion"], **sets} if sets else {"": run["fusion"]}).items():
        yield from ("", f"{name}:", "") if name else ("",)
        yield f"| {' | '.join(COLUMNS)} |"
        yield "| --- | --- |" + " ---: |" * (len(COLUMNS) - 2)
        yield from (f"| {' | '.join(cells(row))} |" for row in rows)


def _compared(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, each with its answer's F1 against that of the same model from text; None for text itself."""
    said = {(row["model"], row["id"]): str(row["answer"]) for row in rows if not row["ratio"]}
    for row in rows:
        text = said.get((row["model"], row["id"])) if row["ratio"] else None
        yield {**row, "agreement": None if text is None else f1(str(row["answer"]), [text])}


def _change(
    name: str, beside: str, rows: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], scale: float
) -> dict[str, Any]:
    """The mean difference of a figure from other rows of the same questions."""
    known = {row["id"]: row[name] for row in before if row[name] is not None}
    changes = [scale * (row[name] - known[row["id"]]) for row in rows if row["id"] in known and row[name] is not None]
    return mean_figures(f"{name} {beside}", changes, digits=3 if scale == 1 else 1)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {"questions": len(rows)}
    for name in ("f1", "em", "agreement"):
        out |= mean_figures(name, [100 * float(row[name]) for row in rows if row[name] is not None])
    out |= mean_figures("loss", [row["loss"] for row in rows if row["loss"] is not None], digits=3)
    for name in ("first_seconds", "seconds", "compress_seconds"):
        out[name] = np.mean([row[name] for row in rows], axis=0).round(3).tolist()
    return out | {"bytes": round(float(np.mean([row["bytes"] for row in rows])))}
