"""Which of the kept sentences an answer without a language model quotes, and what has to stand beside them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from compmem.schema import Chunk, Evidence
from compmem.text.tokenize import content_terms, root, words

QUOTED = 3
"""Sentences quoted in an answer."""

QUOTED_SHARE = 0.5
"""Sentences with at least this share of the best score are quoted too: a question may have several answers."""

MOST_QUOTED = 12
"""Most sentences quoted in an answer if several are equally good."""

MOST_ADDED = 3
"""Most sentences of quoted chunks added for words of the question that no quoted sentence has."""

ADDED_SHARE = 0.1
"""Least share of the question's weight that such a sentence adds."""

ALONE_SHARE = 0.3
"""That share for a sentence without a further word in common with the quoted ones: the question asks for two things."""

MOST_AFTER = 3
"""Most sentences quoted after one that only introduces them."""

MOST_BEFORE = 2
"""Most sentences quoted before one with a pronoun."""

_PRONOUNS = frozenset("he her his it its she that their these they this those".split())
_PERSONAL = frozenset("he she they".split())
_OPENING = 4
"""First words of a sentence in which `he`, `she` or `they` means someone named before."""

Span = tuple[int, int]


def quoted_sentences(asked: Mapping[str, float], evidence: Sequence[Evidence]) -> list[Evidence]:
    """The sentences of an answer: those of the best chunks in reading order, each chunk's in its own.

    Sentences are the best kept one of each of the best chunks, more of a chunk if equally good; then their context
    (the answer that a question or heading introduces, the name that a pronoun means, the head and the like rows of a
    table); then other sentences of these chunks for words of the question that are still missing.

    Args:
        asked: The weight of the root of each word of the question.
        evidence: The kept sentences, at least one.
    """
    quoted = _supporting(evidence)
    for chunk in {e.chunk.id: e.chunk for e in quoted}.values():
        quoted += _context(asked, chunk, {e.start for e in quoted if e.chunk.id == chunk.id})
    quoted += _completing(asked, quoted)
    place = {key: n for n, key in enumerate(dict.fromkeys(e.chunk.id for e in quoted))}
    return sorted(quoted, key=lambda e: (place[e.chunk.id], e.start))


def _supporting(evidence: Sequence[Evidence]) -> list[Evidence]:
    """The best sentences of each of the best chunks, in reading order; more if others are equally good.

    A chunk has several best ones if identifiers link them, since a linked sentence has the score of the other.
    """
    best: dict[str, list[Evidence]] = {}
    for item in evidence:
        held = best.setdefault(item.chunk.id, [item])
        if item.score > held[0].score:
            best[item.chunk.id] = [item]
        elif item.score == held[0].score and all(e.text != item.text for e in held):
            held.append(item)
    every = [e for held in best.values() for e in held]
    ranked = sorted(every, key=lambda e: (-e.score, len(e.text)))
    others = [e for e in ranked[QUOTED:MOST_QUOTED] if e.score >= QUOTED_SHARE * ranked[0].score]
    chosen = {id(e) for e in [*ranked[:QUOTED], *others]}
    return [e for e in every if id(e) in chosen]


def _context(asked: Mapping[str, float], chunk: Chunk, quoted: set[int]) -> list[Evidence]:
    """The sentences without which the quoted ones of a chunk, given by their starts, say little."""
    spans = chunk.sentences
    texts = [chunk.text[a:b].strip() for a, b in spans]
    parted = [True, *("\n\n" in chunk.text[a:b] for (_, a), (b, _) in pairwise(spans))]  # paragraphs begin there
    needed: set[int] = set()
    for place, (start, _) in enumerate(spans):
        if start in quoted:
            needed.update(_introduced(texts, parted, place))
            needed.update(_named_before(texts, parted, place))
            needed.update(_of_table(asked, texts, place))
    return [_sentence(chunk, spans[n]) for n in sorted(needed) if spans[n][0] not in quoted]


def _introduced(texts: Sequence[str], parted: Sequence[bool], place: int) -> Iterator[int]:
    """The sentences behind a question, a heading or a colon, up to the next of these or the paragraph's end."""
    if not _introduces(texts[place]):
        return
    said = False
    for after in range(place + 1, min(place + 1 + MOST_AFTER, len(texts))):
        if said and (parted[after] or _introduces(texts[after])):
            return
        said = said or not _introduces(texts[after])
        yield after


def _named_before(texts: Sequence[str], parted: Sequence[bool], place: int) -> Iterator[int]:
    """The sentences before one with a pronoun, back to one without, in its paragraph."""
    for at in range(place, max(place - MOST_BEFORE, 0), -1):
        if parted[at] or not _of_someone(texts[at]):
            return
        yield at - 1


def _of_table(asked: Mapping[str, float], texts: Sequence[str], place: int) -> Iterator[int]:
    """The head of a row's table, and the rows that have all words of the question that this one has."""
    if not _is_row(texts[place]):
        return
    first = last = place
    while first and _is_row(texts[first - 1]):
        first -= 1
    while last + 1 < len(texts) and _is_row(texts[last + 1]):
        last += 1
    yield first
    if own := _roots(texts[place]) & asked.keys():
        alike = (n for n in range(first + 1, last + 1) if own <= _roots(texts[n]))
        yield from (n for n, _ in zip(alike, range(MOST_QUOTED), strict=False))


def _completing(asked: Mapping[str, float], quoted: Sequence[Evidence]) -> list[Evidence]:
    """Further sentences of the quoted chunks, with words of the question that the quoted ones lack.

    Each shares a word with those before it that is not the question's ("Acme rents the Harbour Building. The Harbour
    Building is insured by Lloyd."), follows one and begins with a pronoun, or has much that is missing.
    """
    known = set[str]().union(*(_roots(e.text) | _roots(e.chunk.label) for e in quoted))
    missing, linking = {r: weight for r, weight in asked.items() if r not in known}, known - asked.keys()
    others = [(e, _roots(e.text), _of_someone(e.text)) for e in _beside(quoted)] if missing else []
    total, added = sum(asked.values()), list[Evidence]()
    while len(added) < MOST_ADDED:
        possible = list[tuple[bool, float, int]]()
        for place, (_, own, of_someone) in enumerate(others):
            linked, adds = not own.isdisjoint(linking), sum(missing.get(r, 0.0) for r in own)
            if adds >= total * (ADDED_SHARE if linked or of_someone else ALONE_SHARE):
                possible.append((linked, adds, -place))
        if not possible:
            break
        sentence, own, _ = others.pop(-max(possible)[2])
        added.append(sentence)
        missing = {r: weight for r, weight in missing.items() if r not in own}
        linking |= own - asked.keys()
    return added


def _beside(quoted: Sequence[Evidence]) -> Iterator[Evidence]:
    """The other sentences of the quoted chunks; one that begins with a pronoun only directly after a quoted one."""
    held = {(e.chunk.id, e.start) for e in quoted}
    for chunk in {e.chunk.id: e.chunk for e in quoted}.values():
        before = -1
        for a, b in chunk.sentences:
            followed = (chunk.id, before) in held
            if (chunk.id, a) not in held and (followed or not _of_someone(chunk.text[a:b])):
                yield _sentence(chunk, (a, b))
            before = a


def _sentence(chunk: Chunk, span: Span) -> Evidence:
    return Evidence(text=chunk.text[slice(*span)].strip(), chunk=chunk, start=span[0], end=span[1], score=0.0)


def _introduces(text: str) -> bool:
    """Whether a sentence only says what the next ones are about."""
    return text.endswith(("?", ":")) or text.startswith("#")


def _of_someone(text: str) -> bool:
    """Whether a sentence is about someone or something that was named before it."""
    opening = words(text.strip()[:80])[:_OPENING]
    return not (_PRONOUNS.isdisjoint(opening[:1]) and _PERSONAL.isdisjoint(opening))


def _is_row(text: str) -> bool:
    return text.startswith("|")


def _roots(text: str) -> set[str]:
    return {root(t) for t in content_terms(text)}
