"""The second part of the demo: numbers hidden in the documentation, read by the embedded backbone from KV states."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from random import Random

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

import compmem
from compmem.backbone import Backbone
from compmem.cli.demo_docs import documents
from compmem.schema import Encoder

NEEDLES, TOKENS, PAGES, EXCERPT = 5, 2000, 400, 300
"""Questions; tokens of a haystack (by the backbone's tokenizer); pages with excerpts; characters of an excerpt."""
ADJECTIVES = ("amber", "brisk", "copper", "gentle", "hollow", "quiet")
NOUNS = ("anchor", "basket", "lantern", "orchard", "saddle", "violin")

Result = dict[str, str | bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Haystack:
    """Documents, one of which contains a number, and the question for it."""

    documents: tuple[compmem.Document, ...]
    question: str
    answer: str


def read_needles(console: Console | None, encoder: Encoder, device: str | None) -> list[Result]:
    """The answers of both readers to each question; printed to the console if there is one."""
    backbone = Backbone.load("embedded", device=device)
    if console is not None:
        console.print(Rule("the same loop on compressed KV states", align="left", style="cyan"))
        size = sum(p.numel() for p in backbone.decoder.parameters())
        console.print(
            f"A number is hidden in {TOKENS:,} tokens of documentation. The embedded backbone, {size:,} parameters "
            f"trained on a CPU, reads it from one memory token per {backbone.memory.ratio} tokens of text; the "
            "extractive reader quotes.\n"
        )
    return [_asked(backbone, encoder, haystack, console) for haystack in _haystacks(backbone)]


def _haystacks(backbone: Backbone) -> list[Haystack]:
    """One haystack per question: excerpts of documentation in random order, one of them with a number."""
    excerpts = [page.text[:EXCERPT].strip() for page in islice(documents(), PAGES)]
    sizes = [len(backbone.encode(text)) for text in excerpts]
    return [_haystack(Random(number), excerpts, sizes) for number in range(NEEDLES)]


def _haystack(rng: Random, excerpts: Sequence[str], sizes: Sequence[int]) -> Haystack:
    numbers = rng.sample(range(len(excerpts)), len(excerpts))
    ends = accumulate(sizes[n] for n in numbers)
    texts = [excerpts[n] for n, end in zip(numbers, ends, strict=True) if end <= TOKENS]
    key, value = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}", str(rng.randint(1_000_000, 9_999_999))
    place = rng.randrange(len(texts))
    texts[place] += f"\n\nOne hidden number that belongs to {key} is: {value}."
    documents = tuple(compmem.Document(text=text) for text in dict.fromkeys(texts))
    return Haystack(documents=documents, question=f"Which hidden number belongs to {key}?", answer=value)


def _asked(backbone: Backbone, encoder: Encoder, haystack: Haystack, console: Console | None) -> Result:
    kv = compmem.IndexConfig(memory="kv", backbone="embedded", chunk_tokens=96, encoder=None)
    with compmem.MemoryIndex.create(None, kv, backbone=backbone) as memory:
        memory.add(haystack.documents)
        latent = memory.answer(haystack.question)
    with compmem.MemoryIndex.create(None, compmem.IndexConfig(encoder=encoder)) as memory:
        memory.add(haystack.documents)
        quoted = memory.answer(haystack.question)
    expected = haystack.answer
    right = {name: expected in answer.text for name, answer in (("latent", latent), ("extractive", quoted))}
    if console is not None:
        console.print(Text(haystack.question, style="bold"))
        for name, answer in (("latent", latent), ("extractive", quoted)):
            mark = Text("right", style="green") if right[name] else Text("wrong", style="red")
            read = f"  {answer.usage.blocks_read} blocks read"
            console.print(Text(f"  {name:<11}") + mark + Text(f"  {answer.text}"[:100]) + Text(read, style="dim"))
    return {"question": haystack.question, "expected": expected, **right}
