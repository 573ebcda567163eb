"""An answer with its sources and steps as an HTML page; everything on it is escaped, since documents are untrusted."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from compmem.cli.answer_text import (
    NOT_READ_IN_TIME,
    NOTHING_NEW,
    cost_text,
    count_text,
    gate_decisions,
    location,
    new_notes,
    printable,
    quotes,
)
from compmem.schema import Answer

_MAX_TITLE_CHARS: Final = 400
"""Maximum number of characters of the question in the title."""

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1f2328; --soft: #656d76; --line: #e4e1d9;
  --accent: #0f766e; --wash: #e7f3f1; --mark: #fdeeb5; --warn: #9a3412; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #9aa4ad;
  --line: #2c3238; --accent: #5ec9bd; --wash: #17302d; --mark: #5a4a12; --warn: #f0a27c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1 { font-size: 1.55rem; line-height: 1.3; margin: .25rem 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; color: var(--soft); margin: 2.75rem 0 .75rem; }
.kicker, .meta { color: var(--soft); font-size: .85rem; }
.answer { background: var(--wash); border-left: 4px solid var(--accent); border-radius: 6px; padding: 1rem 1.25rem;
  font-size: 1.1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.answer.none { border-color: var(--warn); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1.1rem;
  margin: .75rem 0; overflow-wrap: anywhere; }
.card h3 { font-size: 1rem; margin: 0; }
ol.steps { list-style: none; margin: 0; padding: 0 0 0 1.1rem; border-left: 2px solid var(--line); }
ol.steps > li { position: relative; }
ol.steps > li::before { content: ""; position: absolute; left: calc(-1.1rem - 6px); top: 1.25rem; width: 10px;
  height: 10px; border-radius: 50%; background: var(--line); }
ol.steps > li.updated::before { background: var(--accent); }
.score { display: flex; align-items: center; gap: .6rem; font-variant-numeric: tabular-nums; font-size: .85rem; }
meter { width: 6rem; height: .6rem; }
.pill { display: inline-block; border: 1px solid var(--line); border-radius: 99px; padding: 0 .6rem;
  margin: .4rem .3rem 0 0; font-size: .78rem; color: var(--soft); }
.pill.yes { color: var(--accent); border-color: var(--accent); }
.kept { margin: .6rem 0 .2rem; padding-left: .9rem; border-left: 3px solid var(--accent); white-space: pre-wrap; }
details { margin-top: .5rem; } summary { cursor: pointer; color: var(--soft); font-size: .85rem; }
.text { white-space: pre-wrap; font-size: .92rem; margin: .5rem 0 0; }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 .1em; }
"""


def answer_page(answer: Answer) -> str:
    """The answer, its sources and every step, as one self-contained HTML page without scripts."""
    title = _html(
        answer.question if len(answer.question) <= _MAX_TITLE_CHARS else answer.question[:_MAX_TITLE_CHARS] + "…"
    )
    body = "\n".join([*_page_head(answer, title), *_page_sources(answer), *_page_steps(answer)])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _page_head(answer: Answer, title: str) -> Iterator[str]:
    yield f'<p class="kicker">Question</p>\n<h1>{title}</h1>'
    yield f'<div class="answer{"" if answer.found else " none"}">{_html(answer.text)}</div>'
    yield f'<p class="meta">Ended by: {_html(answer.stop_reason)} · {_html(cost_text(answer.usage))}</p>'


def _page_sources(answer: Answer) -> Iterator[str]:
    if answer.sources:
        yield "<h2>Sources</h2>"
    for number, source in enumerate(answer.sources, start=1):
        chunk = source.chunk
        marked = _with_marks(chunk.text, [(q.start, q.end) for q in quotes(answer, source)])
        yield f"""<section class="card">
<h3>{number}. {_html(chunk.label or chunk.document_id)}{" · cited" if source.cited else ""}</h3>
<p class="meta">{_html(chunk.document_id)} · characters {chunk.start}-{chunk.end}</p>
{_score(source.score)}
<details{" open" if number <= 3 else ""}><summary>text</summary><div class="text">{marked}</div></details>
</section>"""


def _page_steps(answer: Answer) -> Iterator[str]:
    if not answer.steps:
        return
    yield '<h2>How it was reached</h2>\n<ol class="steps">'
    before = ""
    for step in answer.steps:
        reads = "\n".join(f"{_score(r.score)}\n<p class='meta'>{_html(location(r))}</p>" for r in step.recalls)
        kept = new_notes(step, before)
        pills = "".join(
            f'<span class="pill{" yes" if word not in (NOTHING_NEW, NOT_READ_IN_TIME) else ""}">{_html(word)}</span>'
            for word in gate_decisions(step)
        )
        yield f"""<li class="card{" updated" if step.updated else ""}">
<h3>Step {step.number}</h3>
{f'<p class="meta">search for: {_html(step.request)}</p>' if step.request else ""}
<p class="meta">{count_text(step.candidates, "candidate")} · {step.seconds:.2f} s</p>
{reads}
{f'<div class="kept">{_html(kept)}</div>' if kept else ""}
{pills}
</li>"""
        before = step.working_memory
    yield "</ol>"
    yield f'<details><summary>working memory at the end</summary><div class="text">{_html(before)}</div></details>'


def _score(score: float) -> str:
    return f'<div class="score"><meter min="0" max="1" value="{score:.3f}"></meter> gate {score:.2f}</div>'


def _with_marks(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The escaped text, with the spans marked."""
    parts: list[str] = []
    at = 0
    for start, end in spans:
        if start < at:
            continue
        parts += [_html(text[at:start]), "<mark>", _html(text[start:end]), "</mark>"]
        at = end
    return "".join(parts) + _html(text[at:])


def _html(text: str) -> str:
    return escape(printable(text))
