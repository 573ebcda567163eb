"""Tiny stages for training: a stage over fixed rows of random tokens, and packed text of made-up facts."""

import json
from dataclasses import dataclass, field

import numpy as np
import torch

from compmem.backbone import AdapterConfig, Backbone, MemoryConfig
from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem.schema import Document
from compmem_research.tasks.sample import Span
from compmem_research.tasks.synthetic_facts import Fact, WorldSample
from compmem_research.training.data.mixture import Mixture, MixtureSettings
from compmem_research.training.data.packed import read_tokenizer
from compmem_research.training.engine.trainer import RunSettings, Trainer
from compmem_research.training.from_scratch import DecoderConfig, untrained_backbone
from compmem_research.training.text import TextPreparation, made_up, train
from tests.conftest import make_model, make_tokenizer


@dataclass
class Rows:
    ids: list[list[int]]
    counts: dict[str, float]
    tokens: int


@dataclass
class Toy:
    """Next tokens of random rows in two parts whose sizes differ, so that a mean of means would show."""

    killed_at: int | None = None
    name: str = "toy"
    hidden: int = 32
    scale: float = 1.0
    weights: dict[str, float] = field(default_factory=lambda: {"even": 1.0, "odd": 0.5, "exact_even": 0.0})
    state: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.backbone = Backbone.from_model(
            make_model("qwen3", hidden_size=self.hidden, tie_word_embeddings=True), make_tokenizer()
        )

    def parameters(self):
        return self.backbone.parameters("base")

    def batch(self, step, rows):
        if step == self.killed_at:
            raise KeyboardInterrupt
        ids = [np.random.default_rng(row).integers(3, 50, 4 + row % 5).tolist() for row in rows]
        counts = {"even": 0.0, "odd": 0.0, "exact_even": 0.0}
        for row in ids:
            counts[self._part(row)] += len(row) - 1
        counts["exact_even"] = counts["even"]
        return Rows(ids, counts, sum(map(len, ids)))

    def losses(self, batch):
        sums = {name: torch.zeros(()) for name in self.weights}
        for row in batch.ids:
            logits = self.backbone.logits(self.backbone.read([row[:-1]]))[0]
            target = torch.tensor(row[1:])
            sums[self._part(row)] = sums[self._part(row)] + self.scale * torch.nn.functional.cross_entropy(
                logits, target, reduction="sum"
            )
            if self._part(row) == "even":
                sums["exact_even"] = sums["exact_even"] + (logits.argmax(-1) == target).sum()
        return sums

    def after(self, figures):
        self.state["steps"] = self.state.get("steps", 0.0) + 1
        return self.state["steps"] == 3

    def measure(self, step):
        return {"held_exact": float(step)}

    def save(self, folder):
        self.backbone.save(folder)

    @staticmethod
    def _part(row):
        return "odd" if len(row) % 2 else "even"


def hurry(patch):
    """Leaves out what takes seconds in each run and is tested elsewhere: the ceiling, plots, and much filler text."""
    patch.setattr("compmem_research.training.engine.trainer.matmul_ceiling", lambda *_, **__: 1e12)
    patch.setattr("compmem_research.training.engine.trainer.plot", lambda folder: None)
    patch.setattr("compmem_research.tasks.haystack._FIRST_DRAW", 64)
    patch.setattr("compmem_research.training.data.sources.PASSAGES", 60)


def run(out, stage=None, provenance=None, **settings):
    """Runs a stage to its end, or until it is killed; returns its metrics."""
    defaults = {
        "steps": 6, "batch": 8, "device": "cpu", "checkpoint_every": 2, "log_every": 1, "warmup": 2,
        "ceiling_seconds": 0.01,
    }  # fmt: skip
    return Trainer(RunSettings(out=out, **{**defaults, **settings})).run(stage or Toy(), provenance)


def write_texts(file, lines=400):
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in made_up(lines, seed=1)))
    return file


def prepare(folder, vocabulary=400):
    """Packed text of made-up facts, with its own tokenizer."""
    texts = write_texts(folder / "texts.jsonl")
    train(TextPreparation(texts=(texts,), out=folder / "data", vocabulary=vocabulary, made_up=50))
    return folder / "data"


def small_backbone(data):
    """An untrained backbone with memory, for the tokenizer of packed text."""
    config = DecoderConfig(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=96, context=1024)
    made = untrained_backbone(config, read_tokenizer(data), device="cpu")
    made.add_memory(MEMORY)
    return made


PROMPTS = LatentPrompts(
    nothing="-", update="{question} | {memory}", overwrite="{question} | {memory} >", answer="{question} | {memory} ="
)


SELECTED = MemoryConfig(states="selected", own=())


LORA = AdapterConfig(rank=4, targets=("q", "k", "v", "o", "gate", "up", "down"))


MEMORY = MemoryConfig(window=64)

TEXTS = ["Ida was born in Ulm.", "It rained.", "Ox was made by Ida.", "Bo was born in Kiel."]


def settings(out, **changes):
    defaults = {"steps": 40, "batch": 1, "device": "cpu", "learning_rate": 1e-2, "warmup": 5, "log_every": 1000}
    defaults |= {"checkpoint_every": 0, "measure_every": 0, "ceiling_seconds": 0.01, "final_rate": 0.3}
    return RunSettings(out=out, **{**defaults, **changes})


class Few(Mixture):
    """A mixture in which every step has the same samples."""

    def batch(self, step, rows):
        return super().batch(step, range(2))


def few(backbone, *components, prompts=PROMPTS, data=None, trained=("base", "memory"), **changes):
    parameters = {name: p for part in trained for name, p in backbone.parameters(part).items()}
    mixture = MixtureSettings(components=components, data=data, **changes)
    return Few("few", backbone, parameters, mixture, steps=StepPrompts(backbone, prompts), seed=0)


def world(texts, facts, **changes):
    documents = tuple(Document(id=str(n), text=t) for n, t in enumerate(texts))
    evidence = []
    for fact in facts:
        n = next(n for n, t in enumerate(texts) if fact in t)
        evidence.append(Span(document=str(n), start=texts[n].index(fact), end=texts[n].index(fact) + len(fact)))
    values = {"id": "w", "task": "world-2hop", "question": "Where was the maker of Ox born?", "answers": ("Ulm",)}
    told = (("Ox", "maker", "Ida"), ("Ida", "birthplace", "Ulm"))[: len(facts)]
    facts = tuple(Fact(subject=s, relation=r, object=o) for s, r, o in told)
    values |= {
        "documents": documents,
        "evidence": tuple(evidence),
        "facts": facts,
        "notes": tuple(f.note for f in facts),
    }
    return WorldSample(**{**values, **changes})


def write_set(file, questions=60):
    def line(n):
        town = ("Ulm", "Kiel", "Bonn")[n % 3]
        paragraphs = [
            {"title": f"Ida{n}", "sentences": [f"Ida{n} was born in {town}."], "supporting": [0]},
            {"title": f"Bo{n}", "sentences": [f"Bo{n} sings."], "supporting": []},
            {"title": f"Cy{n}", "sentences": [f"Cy{n} reads."], "supporting": []},
        ]
        question = {"id": f"q{n}", "dataset": "own", "question": f"Where was Ida{n} born?", "answer": town}
        return json.dumps(question | {"paragraphs": paragraphs}) + "\n"

    file.write_text("".join(map(line, range(questions))))
    return file
