import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compmem.text import tokenize
from compmem.text.tokenize import (
    MAX_NAME_WORDS,
    capital_runs,
    capitalised_names,
    content_terms,
    fold,
    mentions,
    name,
    names_of,
    possible_names,
    terms,
    words,
)


def test_terms_are_stems_and_pairs():
    assert terms("The Cats' running") == ["the", "cat", "run"]
    assert terms("東京都は") == ["東京", "京都", "都は"]
    assert terms("서울에서") == ["서울", "울에", "에서"]
    assert terms("水") == ["水"]


@pytest.mark.parametrize(("a", "b"), [("Müller", "muller"), ("ＡＢＣ", "abc"), ("STRASSE", "straße"), ("Café", "cafe")])
def test_fold_drops_case_width_and_accent(a, b):
    assert fold(a) == fold(b)


def test_a_word_inside_a_longer_run_is_found_without_spaces():
    assert set(terms("東京")) <= set(terms("私は東京都に住んでいます"))
    assert set(terms("서울")) <= set(terms("서울에서 만났다"))


def test_content_terms_leave_stopwords_out():
    assert content_terms("Who is the mother of the director of the film?") == ["mother", "director", "film"]


def test_names_of_gives_titles_with_and_without_their_aside_headings_and_defined_terms():
    found = dict(
        names_of("Polish-Russian War (film)", ["Handler objects"], 'class logging.Handler(x)\n"Rent" means money')
    )
    assert found["polish russian war film"] == "title"
    assert found["polish russian war"] == "title"
    assert found["handler objects"] == "heading"
    assert found["logging handler"] == found["rent"] == "term"


def test_mentions_prefer_the_longest_name_and_know_what_is_said_of_it():
    found = mentions("the director of film Polish-Russian War", {"war", "polish russian war"})
    assert [m.name for m in found] == ["polish russian war"]
    assert found[0].capitalised == 1.0
    assert {"direc", "film"} <= found[0].nearby
    assert mentions("a war of words", {"war"})[0].capitalised == 0.0


@given(st.text())
def test_any_text_has_terms_and_names(text):
    assert all(t and " " not in t for t in terms(text))
    for run in possible_names(text):
        assert name(run) == run or not run.isascii()
        assert run.count(" ") < MAX_NAME_WORDS
    assert len(mentions(text, possible_names(text))) <= len(words(text))
    assert all(0 < len(m.name.split()) <= MAX_NAME_WORDS for m in capitalised_names(text))


def test_spoken_names_are_runs_of_capitals_whether_known_or_not():
    text = "In Lund, J. R. R. Tolkien met Tim Burton of the University of Vienna. Then Ann's Öl-Werk 7 was closed."
    assert [m.name for m in capitalised_names(text)] == [
        "lund", "j r r tolkien", "tim burton of the university of vienna", "ann", "ol werk",
    ]  # fmt: skip
    (mention,) = capitalised_names("it was directed by Tim Burton alone")
    assert mention.nearby == {"direc", "alone"}
    assert capitalised_names("東京都 and nothing else") == []


@given(st.text())
def test_folding_by_runs_is_folding_the_whole(text):
    decomposed = unicodedata.normalize("NFKD", text.casefold()).casefold()
    whole = unicodedata.normalize("NFC", "".join(c for c in decomposed if not unicodedata.combining(c)))
    assert fold(text) == whole


def test_long_words_are_not_kept_in_memory():
    caches = (tokenize._cached_stem, tokenize._cached_fold)
    before = [cache.cache_info().currsize for cache in caches]
    for n in range(9):
        tokenize.terms(f"{'b' * 600}{n} {'é' * 600}{chr(0x5E00 + n)}")
    assert [cache.cache_info().currsize for cache in caches] == before
    tokenize.terms("unheardofword ξψωζχξψωζχ")
    assert all(cache.cache_info().currsize > size for cache, size in zip(caches, before, strict=True))


def test_words_of_indic_scripts_keep_their_vowel_signs_and_others_lose_their_accents():
    assert words("हिन्दी दिन दान") == ["हिनदी", "दिन", "दान"]
    assert words("தமிழ் மொழி, ที่นี่") == ["தமிழ", "மொழி", "ทีนี"]
    assert words("Досто́евский e\u0301tude הַבַּיִת") == ["достоевскии", "etude", "הבית"]
    assert [m.name for m in mentions("О Досто́евский писал", {name("Достоевский")})] == [name("Досто́евский")]
    assert capital_runs("by Фёдор Досто́евский here") == ["Фёдор Досто́евский"]
