"""Where sentences end."""

import pytest

from compmem.text.sentences import sentences


def split(text):
    return [text[start:end] for start, end in sentences(text)]


@pytest.mark.parametrize(
    "sentence",
    [
        "The seat costs approx. €22 a month.",
        "The seat costs approx. (€22) a month.",
        "Call Tel. +43 1 555 0117 in the morning.",
        "See Art. §5 of the law.",
        "Use no. #12 for it.",
        "The scale has an error of ca. ±5 % today.",
        "It is in the Act, 42 U.S.C. § 11301, since 1987.",
        "They sold it for U.S. $5 million in all.",
        "Write to Eric B. & Rakim about it.",
        "The office is at Hauptstr. 5, 8010 Graz.",
        "The office is at Aug.-Bebel-Str. 7, 8010 Graz.",
        "Ask her by phone, ext. 47, before May.",
        "It is in Ziff. 4 and in Abs. (2) of it.",
        "Wir öffnen vom 3. – 5. Mai wieder.",
    ],
)
def test_an_abbreviation_before_a_sign_a_bracket_or_a_number_ends_no_sentence(sentence):
    text = f"{sentence} The rest is free."
    assert split(text) == [sentence, "The rest is free."]


@pytest.mark.parametrize(
    "parts",
    [
        ["It costs nothing.", "€22 is the fee of others."],
        ["See the list.", "(It is long.)"],
        ["It is Vitamin C.", "€22 is the price."],
        ["It was in 2004.", "$5 million were spent."],
        ["It was the last chapter.", "§ 5 is new."],
        ["We ask for the extra.", "#12 is free."],
        ["He lives in the Hauptstr.", "Graz is large."],
        ["They have an ext.", "It is new."],
        ["Is it so?", "+43 is the code."],
    ],
)
def test_a_sentence_ends_before_a_sign_or_a_bracket(parts):
    assert split(" ".join(parts)) == parts
