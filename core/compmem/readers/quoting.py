"""Which of the kept sentences an answer without a language model quotes, and what has to stand beside them."""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain, islice

from compmem.readers.outline import (
    MAX_LIST_ITEMS,
    Outline,
    Outlines,
    field_names,
    field_values,
    is_item,
    is_labelled_item,
    is_of_someone,
    is_reply,
    is_rule,
    roots,
)
from compmem.schema import Chunk, Evidence
from compmem.text.sentences import is_row

MAX_QUOTED_CHUNKS = 12
"""Maximum number of chunks of which the best sentence is quoted: a question may have several answers."""

QUOTED_SHARE = 0.5
"""Minimum share of the best score with which it is; of a further sentence, of the best score of its chunk."""

AS_GOOD_SHARE = 0.95
"""Share of the best score of its chunk with which a sentence is as good."""

MIN_QUOTED_SHARE = 0.4
"""Minimum share of the best score with which a further sentence is quoted."""

QUOTED_WORDS = 100
"""Number of words of these sentences together up to which further ones are quoted."""

MAX_ADDED_SENTENCES = 3
"""Maximum number of sentences of quoted chunks added for words of the question that no quoted sentence has."""

ADDED_SHARE = 0.1
"""Minimum share of the question's weight that such a sentence adds."""

MAX_BESIDE_WORDS = 60
"""Maximum number of words of a sentence that is quoted because it stands next to the best one."""

SHORT_CHUNK = 3
"""Number of sentences up to which a chunk is short."""

ALONE_SHARE = 0.3
"""`ADDED_SHARE` of one that shares no other word with the quoted ones: the question asks for two things."""


def quoted_sentences(weights: Mapping[str, float], evidence: Sequence[Evidence], outlines: Outlines) -> list[Evidence]:
    """The sentences of an answer: those of the best chunks in reading order, each chunk's in its own.

    First the best kept sentences; then their context (the answer that a question or heading introduces, the name that a
    pronoun means, the head and the like rows of a table, the rest of a short block of code); then other sentences of
    these chunks for words of the question that are still missing. If some are missing even so, or the very best one
    only names the subject, the answer may be in other words: the sentences beside it are quoted too.

    Args:
        weights: The weight of the root of each word of the question.
        evidence: The kept sentences, at least one.
        outlines: Makes the outlines of their chunks.
    """
    quoted = _best_sentences(weights, evidence, outlines)
    quoted += _context_sentences(weights, quoted, quoted, outlines)
    added = _completing_sentences(weights, quoted, outlines)
    quoted += [*added, *_context_sentences(weights, added, [*quoted, *added], outlines)]
    best = max(quoted, key=lambda e: e.score)
    if _names_only(weights, best) or not weights.keys() <= _known(quoted, outlines):
        quoted += _sentences_beside(weights, best, quoted, outlines)
    place = {key: n for n, key in enumerate(dict.fromkeys(e.chunk.id for e in quoted))}
    return sorted(quoted, key=lambda e: (place[e.chunk.id], e.start))


def _known(quoted: Sequence[Evidence], outlines: Outlines) -> set[str]:
    """The roots of the words of these sentences and of the titles and headings over them."""
    return set[str]().union(*(outlines.roots(e) | roots(e.chunk.title) for e in quoted))


def _best_sentences(weights: Mapping[str, float], evidence: Sequence[Evidence], outlines: Outlines) -> list[Evidence]:
    """The best sentence of each of the best chunks, and further ones up to a number of words; as in the evidence."""
    ranked = sorted(evidence, key=lambda e: (-e.score, len(e.text)))
    top, found = ranked[0].score, dict[str, Evidence]()
    for e in ranked:
        found.setdefault(e.chunk.id, e)
    best = dict(islice(found.items(), MAX_QUOTED_CHUNKS))
    first = [e for e in best.values() if e.score >= QUOTED_SHARE * top]
    lacking = not weights.keys() <= _known(first, outlines)
    kept = {(e.chunk.id, e.text): e for e in first}
    left = QUOTED_WORDS - sum(len(e.text.split()) for e in first)
    for e in (e for e in ranked if e.score >= MIN_QUOTED_SHARE * top):
        length, of = len(e.text.split()), best.get(e.chunk.id)
        if of and length <= left and (e.chunk.id, e.text) not in kept and _adds(weights, e, of, outlines, lacking):
            left -= length
            kept[e.chunk.id, e.text] = e
    return [e for e in evidence if kept.get((e.chunk.id, e.text)) is e]


def _adds(weights: Mapping[str, float], evidence: Evidence, best: Evidence, outlines: Outlines, lacking: bool) -> bool:
    """Whether a sentence is as good as the `best` one of its chunk or says more.

    It has a word of the question that this one lacks (and, if it is a heading, those over this one); or the first
    sentences quoted lack some together (`lacking`), and it may say the same in other words; or this one only names the
    subject, and it begins with a pronoun.
    """
    if evidence.score >= AS_GOOD_SHARE * best.score:
        return True
    known = outlines.roots(best) if outlines.is_heading(evidence) else roots(best.text)
    if not roots(evidence.text) & weights.keys() <= known:
        return True
    if evidence.score < QUOTED_SHARE * best.score:
        return False
    return (lacking and _may_answer(weights, evidence)) or (_names_only(weights, best) and is_of_someone(evidence.text))


def _names_only(weights: Mapping[str, float], best: Evidence) -> bool:
    """Whether all words of the question that a sentence has are in its document's title: "Where is Villa Rosa?"."""
    return roots(best.text) & weights.keys() <= roots(best.chunk.title)


def _context_sentences(
    weights: Mapping[str, float], new: Sequence[Evidence], quoted: Sequence[Evidence], outlines: Outlines
) -> list[Evidence]:
    """The sentences without which new ones say little, and that are not quoted yet."""
    best = max(quoted, key=lambda e: e.score).chunk.id
    starts, held = {(e.chunk.id, e.start) for e in new}, {(e.chunk.id, e.start) for e in quoted}
    records = [roots(e.text) & weights.keys() for e in quoted if len(field_names(e.text)) > 1]
    found = list[Evidence]()
    for chunk in {e.chunk.id: e.chunk for e in new}.values():
        others = set[str]().union(*(roots(e.text) for e in quoted if e.chunk.id != chunk.id))
        lacks = not (others & weights.keys()).issubset(roots(f"{chunk.label}\n{chunk.text}"))
        own = {start for of, start in starts if of == chunk.id}
        whole = chunk.id == best and not lacks
        needed = _needed_numbers(weights, chunk, outlines.of(chunk), own, records, whole=whole)
        found += [Evidence.of(chunk, chunk.spans[n]) for n in needed if (chunk.id, chunk.spans[n][0]) not in held]
    return found


def _sentences_beside(
    weights: Mapping[str, float], best: Evidence, quoted: Sequence[Evidence], outlines: Outlines
) -> list[Evidence]:
    """The sentences before and after the best one that are not quoted yet."""
    held = {(e.chunk.id, e.start) for e in quoted}
    near = outlines.of(best.chunk).beside(outlines.place(best))
    beside = [Evidence.of(best.chunk, best.chunk.spans[n]) for n in near]
    new = [e for e in beside if (e.chunk.id, e.start) not in held and len(e.text.split()) <= MAX_BESIDE_WORDS]
    return [e for e in new if _may_answer(weights, e) or (e.start > best.start and is_of_someone(e.text))]


def _may_answer(weights: Mapping[str, float], evidence: Evidence) -> bool:
    """Whether a sentence may answer a question some words of which are missing.

    No row of a table, whose rows are alike. Of a short chunk, where all sentences have nearly the same score, items of
    lists, lines with a label, and what has a word of the question.
    """
    if is_row(evidence.text):
        return False
    if len(evidence.chunk.spans) > SHORT_CHUNK or is_item(evidence.text):
        return True
    return not weights.keys().isdisjoint(roots(evidence.text))


def _needed_numbers(
    weights: Mapping[str, float],
    chunk: Chunk,
    outline: Outline,
    starts: Set[int],
    records: Sequence[Set[str]],
    *,
    whole: bool,
) -> list[int]:
    """The numbers of the sentences without which those of a chunk that start here say little.

    A table without any word of the question is quoted `whole`, or not if this is not the best chunk, or if other chunks
    have words that this one lacks. `records` has, for each quoted record, the words of the question that are in it.
    """
    needed = set[int]()
    for place, (start, _) in enumerate(chunk.spans):
        if start in starts:
            needed.update(outline.named_before(place), _introduced_sentences(weights, outline, place, whole=whole))
            needed.update(_rows(weights, outline, place, whole=whole))
            needed.update(_like_records(weights, outline, place, records))
            if not chunk.title:
                needed.add(outline.record(place))
            if _needs_head(weights, outline, place):
                needed.add(outline.heads[place])
            for said in (place, *needed):
                needed.update(outline.block_of_code(said))
    return sorted(needed)


def _introduced_sentences(weights: Mapping[str, float], outline: Outline, place: int, *, whole: bool) -> Iterator[int]:
    """The sentences that this one introduces; of rows and lines with a label, those with most words of the question."""
    after = list(outline.introduced(place))
    if after and is_row(outline.texts[after[0]]):
        head, rows = _table(outline, after[0])
        return chain([] if head is None else [head], _rows_with_most_words(weights, rows, whole=whole))
    if after and all(is_labelled_item(outline.texts[n]) for n in after):
        return _rows_with_most_words(weights, {n: roots(outline.texts[n]) for n in after}, whole=whole)
    return iter(after)


def _rows(weights: Mapping[str, float], outline: Outline, place: int, *, whole: bool) -> Iterator[int]:
    """The head of a row's table, and the rows with all words of the question that it has; if none, the `whole` table.

    Of a head, the rows with most words of the question.
    """
    head, rows = _table(outline, place)
    if head is not None:
        yield head
    if place == head:
        yield from _rows_with_most_words(weights, rows, whole=whole)
    elif (own := rows.get(place, set()) & weights.keys()) or whole:
        yield from islice((n for n, held in rows.items() if own <= held), MAX_LIST_ITEMS)


def _like_records(
    weights: Mapping[str, float], outline: Outline, place: int, records: Sequence[Set[str]]
) -> Iterator[int]:
    """The records like this one with all words of the question that it has, unless a quoted one has these and more.

    None if the question has only names of its fields.
    """
    record = outline.texts[place]
    fields = field_names(record)
    if len(fields) < 2 or weights.keys().isdisjoint(roots(" ".join(field_values(record)))):
        return
    own = roots(record) & weights.keys()
    if not any(own < more for more in records):
        alike = (n for n, text in enumerate(outline.texts) if _are_alike(fields, field_names(text)))
        yield from islice((n for n in alike if own <= roots(outline.texts[n])), MAX_LIST_ITEMS)


def _are_alike(fields: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two records have the same first field, and another one in common."""
    return fields[:1] == others[:1] and not set(fields[1:]).isdisjoint(others[1:])


def _table(outline: Outline, place: int) -> tuple[int | None, dict[int, set[str]]]:
    """The head of a row's table, None if it stands before the chunk, and the roots of each row that has words."""
    table = outline.table(place)
    head = None if not table or (outline.continues and table[0] == 0) else table[0]
    return head, {n: held for n in table if n != head and (held := roots(outline.texts[n]))}


def _rows_with_most_words(weights: Mapping[str, float], rows: Mapping[int, set[str]], *, whole: bool) -> Iterator[int]:
    """The rows with most words of the question; if none has any, all rows of a `whole` table."""
    held = {n: len(own & weights.keys()) for n, own in rows.items()}
    most = max(held.values(), default=0)
    return islice((n for n, count in held.items() if count == most and (most or whole)), MAX_LIST_ITEMS)


def _needs_head(weights: Mapping[str, float], outline: Outline, place: int) -> bool:
    """Whether the line that introduces a sentence is quoted too: for an item, for yes or no, for a word asked for."""
    text, head = outline.texts[place], outline.heads[place]
    if head < 0 or outline.levels[head]:  # headings are written before the sentences
        return False
    if is_item(text) or (is_reply(text) and head == place - 1):
        return True
    return bool((roots(outline.texts[head]) & weights.keys()) - roots(text))


def _completing_sentences(
    weights: Mapping[str, float], quoted: Sequence[Evidence], outlines: Outlines
) -> list[Evidence]:
    """Further sentences of the quoted chunks, with words of the question that the quoted ones lack.

    Each shares a word with those before it that is not the question's ("Acme rents the Harbour Building. The Harbour
    Building is insured by Lloyd."), follows one and begins with a pronoun, or has much that is missing.
    """
    known = _known(quoted, outlines)
    missing, linking = {r: weight for r, weight in weights.items() if r not in known}, known - weights.keys()
    others = (
        [(e, outlines.roots(e), is_of_someone(e.text)) for e in _other_sentences(quoted, outlines)] if missing else []
    )
    said = known.union(*(own for _, own, _ in others))  # words that no sentence here has cannot be added
    total, added = sum(weight for r, weight in weights.items() if r in said), list[Evidence]()
    while len(added) < MAX_ADDED_SENTENCES:
        possible = list[tuple[bool, float, int]]()
        for place, (_, own, of_someone) in enumerate(others):
            linked, adds = not own.isdisjoint(linking), sum(missing.get(r, 0.0) for r in own)
            if adds and adds >= total * (ADDED_SHARE if linked or of_someone else ALONE_SHARE):
                possible.append((linked, adds, -place))
        if not possible:
            break
        sentence, own, _ = others.pop(-max(possible)[2])
        added.append(sentence)
        missing = {r: weight for r, weight in missing.items() if r not in own}
        linking |= own - weights.keys()
    return added


def _other_sentences(quoted: Sequence[Evidence], outlines: Outlines) -> Iterator[Evidence]:
    """The other sentences of the quoted chunks; one that begins with a pronoun only directly after a quoted one."""
    held = {(e.chunk.id, e.start) for e in quoted}
    for chunk in {e.chunk.id: e.chunk for e in quoted}.values():
        before = -1
        for (a, b), level in zip(chunk.sentences, outlines.of(chunk).levels, strict=False):
            followed, marks = (chunk.id, before) in held, level or is_rule(chunk.text[a:b])
            if (chunk.id, a) not in held and not marks and (followed or not is_of_someone(chunk.text[a:b])):
                yield Evidence.of(chunk, (a, b))
            before = a
