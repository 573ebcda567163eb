"""The second part of the demo: numbers hidden in the documentation, read by the embedded backbone from KV states."""

from itertools import islice

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

import compmem
from compmem.backbone import Backbone
from compmem.cli.demo_docs import documents
from compmem.schema import Encoder
from compmem.tasks.filler import Filler
from compmem.tasks.multihop import Passage
from compmem.tasks.ruler import Ruler
from compmem.tasks.sample import Sample

NEEDLES, TOKENS, PAGES = 5, 2000, 400
"""Questions, tokens of a context (the backbone's), pages of documentation that contexts are filled up from."""

Result = dict[str, str | bool]


def read_needles(console: Console | None, encoder: Encoder, device: str | None) -> list[Result]:
    """What both readers say to each question; on the console, where there is one."""
    backbone = Backbone.load("embedded", device=device)
    if console is not None:
        console.print(Rule("the same loop on compressed KV states", align="left", style="cyan"))
        size = sum(p.numel() for p in backbone.decoder.parameters())
        console.print(
            f"A number is hidden in {TOKENS:,} tokens of documentation. The embedded backbone, {size:,} parameters "
            f"trained on a CPU, reads it from one memory token for {backbone.memory.ratio} of the text; the extractive "
            "reader quotes.\n"
        )
    return [_asked(backbone, encoder, sample, console) for sample in _samples(backbone)]


def _samples(backbone: Backbone) -> list[Sample]:
    pages = (Passage(title="", sentences=(page.text[:300],)) for page in islice(documents(), PAGES))
    filler = Filler(lambda texts: [len(backbone.encode(text)) for text in texts], pages)
    return Ruler(filler, split="eval").samples("niah_single_2", TOKENS, NEEDLES)


def _asked(backbone: Backbone, encoder: Encoder, sample: Sample, console: Console | None) -> Result:
    kv = compmem.IndexConfig(memory="kv", backbone="embedded", chunk_tokens=96, encoder=None)
    with compmem.MemoryIndex.create(None, kv, backbone=backbone) as memory:
        memory.add(sample.documents)
        latent = memory.answer(sample.question)
    with compmem.MemoryIndex.create(None, compmem.IndexConfig(encoder=encoder)) as memory:
        memory.add(sample.documents)
        quoted = memory.answer(sample.question)
    expected = sample.answers[0]
    right = {name: expected in answer.text for name, answer in (("latent", latent), ("extractive", quoted))}
    if console is not None:
        console.print(Text(sample.question, style="bold"))
        for name, answer in (("latent", latent), ("extractive", quoted)):
            mark = Text("right", style="green") if right[name] else Text("wrong", style="red")
            read = f"  {answer.usage.blocks_read} blocks read"
            console.print(Text(f"  {name:<11}") + mark + Text(f"  {answer.text}"[:100]) + Text(read, style="dim"))
    return {"question": sample.question, "expected": expected, **right}
