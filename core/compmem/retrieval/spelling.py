"""Mistyped words of a question, replaced by words of the index."""

from collections.abc import Iterator
from string import ascii_lowercase
from typing import Final

from compmem.store.lexical import LexicalIndex
from compmem.text.tokenize import STOPWORDS, content_terms, fold, possible_names, terms, word_spans

_MIN_LETTERS: Final = 5
_MAX_LETTERS: Final = 32
"""Letters of a word that is corrected: short words are near many others."""
_MAX_WORDS: Final = 4
"""Maximum number of words of a question that are corrected; this limits the number of lookups."""


def correct_spelling(question: str, lexical_index: LexicalIndex) -> str:
    """The question, its words that no block has replaced by ones that blocks have and that differ by one typing error.

    That is one letter too many, one left out, or two neighbours swapped, never the first letter. Another letter in
    place of one is no typing error here, because it is often another word ("heart", "heard"). Of several words, the one
    that most blocks have is taken. It keeps a first capital.
    """
    own_terms = content_terms(question)
    lexical_index.prepare(possible_names(question), own_terms)  # in one call with what the analysis looks up first
    counts = lexical_index.document_frequency(own_terms)
    unknown = [
        (start, end)
        for start, end in word_spans(question)
        if _may_be_mistyped(word := fold(question[start:end])) and not any(counts.get(term) for term in terms(word))
    ][:_MAX_WORDS]
    if not unknown:
        return question
    stems = [{form: terms(form)[0] for form in _corrections(fold(question[start:end]))} for start, end in unknown]
    counts = lexical_index.document_frequency([stem for forms in stems for stem in forms.values()])
    for (start, end), forms in reversed(list(zip(unknown, stems, strict=True))):
        blocks, form = max((counts[stem], form) for form, stem in forms.items())
        if blocks:
            form = form.capitalize() if question[start].isupper() else form
            question = question[:start] + form + question[end:]
    return question


def _may_be_mistyped(word: str) -> bool:
    return _MIN_LETTERS <= len(word) <= _MAX_LETTERS and word.isalpha() and word.isascii() and word not in STOPWORDS


def _corrections(word: str) -> Iterator[str]:
    """What a word of ASCII letters would be without one typing error."""
    for at in range(1, len(word)):
        yield word[:at] + word[at + 1 :]
        if at + 1 < len(word):
            yield word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    for at in range(1, len(word) + 1):
        yield from (word[:at] + letter + word[at:] for letter in ascii_lowercase)
