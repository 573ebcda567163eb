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


@pytest.mark.parametrize(
    "lines",
    [
        [
            "2024-06-03 09:01:02 ERROR checkout: upstream timed out",
            "2024-06-03 09:01:07 WARN lb01: disk is full",
            "2024-06-03 09:02:00 INFO deploy: 5.2 by tobias",
        ],
        ["2024-06-03T09:01:02Z the upstream server timed out", "2024-06-03T09:01:07Z disk is full"],
        ["ERROR 2024-06-03T09:01:02Z the upstream server timed out", "INFO 2024-06-03 09:01:07 disk is full"],
        ["Jun  3 09:01:02 lb01 the upstream server timed out", "Jun 13 09:01:07 lb01 disk is full"],
        ["[2024-06-03 09:01] lena: is anyone getting errors on it?", "[2024-06-03 09:02] raj: yes"],
        ["lena 09:01: is anyone else getting errors", "raj Noor (09:02): yes", "lena 9:05 PM - thanks"],
        ["03.06.24, 09:01 - Lena: is anyone else getting errors", "03.06.24, 09:02 - Raj: yes"],
        ["09:14 disk of the second load balancer is full", "09:20 rotated the logs"],
        ["2004: moved to Vienna as a baker", "2006–2008: studied law", "2009 – came back and stayed"],
        ["3 March 2004: moved to Vienna as a baker", "May 12, 2005: studied law"],
        ["This is the log of the day", "09:14 disk of the second load balancer is full", "09:20 rotated the logs"],
        ["09:14 disk is full", "09:16 this line is long and\ngoes on in the next line", "09:20 rotated the logs"],
    ],
)
def test_lines_of_a_log_a_chat_or_a_timeline_stand_for_themselves(lines):
    assert split("\n".join(lines)) == lines


@pytest.mark.parametrize(
    "text",
    [
        "The war that they had lost ended in\n1945 and their king came back to the\ncity after it.",
        "It is known that the war ended with\n1945: the year in which it was said that they had lost all.",
        "The train that they took left at\n09:14 and the second one left at\n10:30 from the same place as ever.",
        "The train that they took on a Monday left\n09:14 sharp, and the second one left at\n10:30 from there.",
        "09:14 is when they left the house and the second one left at\n10:30 from the same place as ever.",
        "It was changed on\n2024-06-03 and again on\n2024-06-05 by those who\nhad written the first one.",
        "The scale that they used was\n1.240.000 to one, and it was\n10.0.12.5 before that, as they said.",
    ],
)
def test_wrapped_prose_with_a_date_or_a_time_at_the_start_of_a_line_is_not_cut(text):
    assert split(text) == [text]


@pytest.mark.parametrize(
    "parts",
    [
        ["``timeout``\n   Seconds until a request is given up.", "``retries``\n   How often it is tried."],
        [
            "timeout : int\n    Seconds until a request, which may be a very long one,\n    is given up.",
            "b : int\n    Others.",
        ],
        ["Term\n\tA word or some words that have a meaning of their own here.", "Other term\n\tThat is another."],
        ["Europe", "  France\n  Germany"],
        ["Usage", "    x = 1"],
        ["The list", "  - one item of it."],
        ["<p>", "  <b>This is a page.</b> It is long and has no end that one can see."],
        ["The line is a long line of prose, of fifty letters", "  To be or not to be."],
        ["The clause that", "  To be or not to be."],
    ],
)
@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_a_term_and_the_indented_text_below_it_are_one_sentence(parts, between):
    between = "\n" if parts[1].startswith(" ") else between
    assert split(between.join(parts)) == [part.strip() for part in parts]


def test_no_sentence_ends_inside_code_or_at_an_abbreviation_of_spanish_and_french():
    text = "Run `make all. Then stop` first. Ask the Sra. Ruiz, Tél. 4, or Mme. Roy. Go."
    assert [text[a:b] for a, b in sentences(text)] == [
        "Run `make all. Then stop` first.", "Ask the Sra. Ruiz, Tél. 4, or Mme. Roy.", "Go.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "The best passages come back, also if few of them are relevant to it;\nothers score below that.",
        "A model reads each part of the\ntext in which it is used; without one, the answer is quoted;\nboth are slow.",
    ],
)
def test_wrapped_prose_with_a_semicolon_at_the_end_of_a_line_is_not_cut(text):
    assert split(text) == [text]


def test_lines_of_code_with_a_semicolon_stand_for_themselves():
    lines = ["int size = compute_size(self, weight, bias, stride, padding);", "return size;", "SELECT a FROM b;"]
    assert split("\n".join(lines)) == lines
