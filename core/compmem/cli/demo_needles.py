"""The second part of the demo: numbers hidden in the documentation, read by a trained backbone from KV states."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from random import Random

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

import compmem
from compmem.backbone import Backbone, size_on_disk
from compmem.cli.demo_docs import documents
from compmem.naming import EMBEDDED, SMOLLM2
from compmem.schema import Encoder

NEEDLES, PAGES, EXCERPT = 5, 400, 300
"""Questions; pages with excerpts; characters of an excerpt."""
TOKENS = {EMBEDDED: 2000, SMOLLM2: 600}
"""Tokens of a haystack, by the backbone's tokenizer: what it compresses in a few seconds on a CPU."""
ADJECTIVES = ("amber", "brisk", "copper", "gentle", "hollow", "quiet")
NOUNS = ("anchor", "basket", "lantern", "orchard", "saddle", "violin")

Result = dict[str, str | bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Haystack:
    """Documents, one of which contains a number, and the question for it."""

    documents: tuple[compmem.Document, ...]
    question: str
    answer: str

    def is_correct(self, answer: str) -> bool:
        """Whether an answer contains the number, and not as a part of another one."""
        return self.answer in re.findall(r"\d+", answer)


def read_needles(
    console: Console | None, encoder: Encoder, device: str | None, base: str | None
) -> tuple[str, list[Result]]:
    """Name of the backbone, and the answers of both readers to each question; printed to the console if there is one.

    The backbone is SmolLM2-135M-Instruct with trained adapters if that model is on this machine or named by `base`,
    else the embedded one.

    Raises:
        CheckpointError: The model cannot be used.
    """
    name, backbone = _backbone(device, base)
    if console is not None:
        console.print(Rule("the same question to compressed KV states", align="left", style="cyan"))
        size = sum(p.numel() for p in backbone.decoder.parameters())
        console.print(
            f"A number is hidden in {TOKENS[name]:,} tokens of documentation. The backbone {name}, {size:,} "
            f"parameters, reads it from one KV state per {backbone.memory.ratio} tokens of text; the extractive "
            "reader quotes."
        )
        if name == EMBEDDED:
            console.print(
                "SmolLM2-135M-Instruct reads it instead where it is on this machine, or with --backbone-base: its "
                "name HuggingFaceTB/SmolLM2-135M-Instruct (270 MB are downloaded), a folder or a .gguf file."
            )
        console.print()
    return name, [_ask(name, backbone, encoder, haystack, console) for haystack in _haystacks(name, backbone)]


def _backbone(device: str | None, base: str | None) -> tuple[str, Backbone]:
    if base is None and size_on_disk(SMOLLM2) is None:  # nothing is downloaded that was not named
        return EMBEDDED, Backbone.load(EMBEDDED, device=device)
    return SMOLLM2, Backbone.load(SMOLLM2, device=device, base=base)


def _haystacks(name: str, backbone: Backbone) -> list[Haystack]:
    """One haystack per question: excerpts of documentation in random order, one of them with a number."""
    excerpts = [page.text[:EXCERPT].strip() for page in islice(documents(), PAGES)]
    sizes = [len(backbone.encode(text)) for text in excerpts]
    return [_haystack(Random(number), excerpts, sizes, TOKENS[name]) for number in range(NEEDLES)]


def _haystack(rng: Random, excerpts: Sequence[str], sizes: Sequence[int], tokens: int) -> Haystack:
    numbers = rng.sample(range(len(excerpts)), len(excerpts))
    ends = accumulate(sizes[n] for n in numbers)
    texts = [excerpts[n] for n, end in zip(numbers, ends, strict=True) if end <= tokens]
    key, value = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}", str(rng.randint(1_000_000, 9_999_999))
    place = rng.randrange(len(texts))
    texts[place] += f"\n\nOne hidden number that belongs to {key} is: {value}."
    documents = tuple(compmem.Document(text=text) for text in dict.fromkeys(texts))
    return Haystack(documents=documents, question=f"Which hidden number belongs to {key}?", answer=value)


def _ask(name: str, backbone: Backbone, encoder: Encoder, haystack: Haystack, console: Console | None) -> Result:
    scorer = None if backbone.has_gate else encoder
    kv = compmem.IndexConfig(memory="kv", backbone=name, chunk_tokens=96, encoder=scorer)
    with compmem.MemoryIndex.create(None, kv, backbone=backbone) as memory:
        memory.add(haystack.documents)
        latent = memory.answer(haystack.question)
    with compmem.MemoryIndex.create(None, compmem.IndexConfig(encoder=encoder)) as memory:
        memory.add(haystack.documents)
        quoted = memory.answer(haystack.question)
    expected, answers = haystack.answer, {"latent": latent, "extractive": quoted}
    right = {reader: haystack.is_correct(answer.text) for reader, answer in answers.items()}
    if console is not None:
        console.print(Text(haystack.question, style="bold"))
        for reader, answer in answers.items():
            mark = Text("right", style="green") if right[reader] else Text("wrong", style="red")
            read = f"  {answer.usage.blocks_read} blocks read"
            console.print(Text(f"  {reader:<11}") + mark + Text(f"  {answer.text}"[:100]) + Text(read, style="dim"))
    return {"question": haystack.question, "expected": expected, **right}
