"""Writes samples as files for `compmem bench quality`."""

import json

from compmem_research.tasks.multihop import open_text


def write_samples(path, samples):
    with open_text(path, "wt") as file:
        for sample in samples:
            file.write(json.dumps(line(sample), ensure_ascii=False) + "\n")


def line(sample):
    return {
        "id": sample.id,
        "task": sample.task,
        "question": sample.question,
        "answers": list(sample.answers),
        "metric": sample.metric,
        "tokens": sample.tokens,
        "evidence": [{"document": s.document, "start": s.start, "end": s.end} for s in sample.evidence],
        "documents": [{"id": d.id, "title": d.title, "text": d.text} for d in sample.documents],
    }
