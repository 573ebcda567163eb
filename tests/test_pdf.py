"""PDFs: lines, paragraphs, running headers and footers, and what is refused."""

import random

import pytest

from compmem import Document
from compmem.cli import pdf as pdf_module
from compmem.cli.formats import parse
from compmem.cli.pdf_layout import Line, pages_text
from compmem.cli.text_decoding import UnreadableError
from compmem.ingest.chunking import split


def pdf_of(*objects):
    """A PDF of these objects; the first one is its catalog."""
    data = b"%PDF-1.4\n" + b"".join(b"%d 0 obj%s endobj\n" % (n, o) for n, o in enumerate(objects, 1))
    return data + b"trailer<</Root 1 0 R/Size %d>>\nstartxref\n0\n%%%%EOF" % (len(objects) + 1)


def contents(data, **about):
    told = b"".join(f"/{key}{value}".encode() for key, value in about.items())
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (told, len(data), data)


def page_of(text, *forms, pages=1, box=b"/MediaBox[0 0 300 300]"):
    """A PDF with these contents of every page; they may call the first form by the name X, and each form the next."""
    kids = b" ".join(b"%d 0 R" % (5 + n) for n in range(pages))
    resources = [b"<</Font<</F 4 0 R>>/XObject<</X %d 0 R>>>>" % (5 + pages + n) for n in range(len(forms) + 1)]
    page = b"<</Type/Page/Parent 2 0 R%s/Contents 3 0 R/Resources%s>>" % (box, resources[0])
    return pdf_of(
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count %d/Kids[%s]>>" % (pages, kids), contents(text),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>", *[page] * pages,
        *(
            contents(form, Type="/XObject", Subtype="/Form", BBox="[0 0 300 300]", Resources=inner.decode())
            for form, inner in zip(forms, resources[1:], strict=True)
        ),
    )  # fmt: skip


ACME = b"BT /F 12 Tf 9 99 Td (Acme)Tj ET"


def test_a_word_that_a_line_end_divides_in_a_pdf_is_joined():
    lines = b"BT /F 12 Tf 9 99 Td (Acme buys a har-)Tj 0 -14 Td (bour. It is)Tj 0 -14 Td (large.)Tj ET"
    assert parse("pdf", page_of(lines), "a.pdf")[1] == "Acme buys a harbour. It is\nlarge."


def test_forms_of_a_pdf_are_read_with_each_page():
    assert parse("pdf", page_of(b"/X Do", ACME, pages=20), "a.pdf")[1] == "\n\n".join(["Acme"] * 20)


def test_a_pdf_of_endless_pages_or_forms_is_refused(monkeypatch):
    kids = b"<</Type/Pages/Count 4/Kids[2 0 R 2 0 R]>>"
    with pytest.raises(UnreadableError, match="or ends its parser"):
        parse("pdf", pdf_of(b"<</Type/Catalog/Pages 2 0 R>>", kids), "a.pdf")
    monkeypatch.setattr(pdf_module, "_CPU_SECONDS", 1)
    with pytest.raises(UnreadableError, match="takes too long or too much memory, or ends its parser"):
        parse("pdf", page_of(*[b"/X Do " * 30] * 9, ACME), "a.pdf")


def test_a_pdf_that_takes_too_much_memory_is_refused(monkeypatch):
    bomb = page_of(b"BT /F 12 Tf 9 99 Td " + b"(Acme Acme)Tj " * 400_000 + b"ET")
    monkeypatch.setattr(pdf_module, "_MEMORY", 400 << 20)
    monkeypatch.setattr(pdf_module, "_COPIES", 0)
    with pytest.raises(UnreadableError, match="takes too long or too much memory, or ends its parser"):
        parse("pdf", bomb, "a.pdf")


def test_a_pdf_with_far_more_text_than_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(pdf_module, "_TEXT", 100)
    monkeypatch.setattr(pdf_module, "_GROWTH", 0)
    with pytest.raises(UnreadableError, match="bytes of PDF with far more text than that"):
        parse("pdf", page_of(ACME, pages=30), "a.pdf")


def set_text(*lines):
    """Contents of a page: size of the font, height on the page and text of each line."""
    each = "".join(f"BT /F {size} Tf 1 0 0 1 20 {height} Tm ({text}) Tj ET\n" for size, height, text in lines)
    return each.encode()


PROSE = "The tenant pays the rent of the mill to", "the landlord on the first day of every", "month."


def test_headings_and_paragraphs_of_a_pdf_are_found():
    first = [(10, 200 - 12 * n, line) for n, line in enumerate(PROSE)]
    second = [(10, 156 - 12 * n, line) for n, line in enumerate(PROSE)]
    page = page_of(set_text((14, 220, "4 Rent"), *first, *second, (10, 110, "5 Costs"), (10, 92, "Who pays what.")))
    text = parse("pdf", page, "a.pdf")[1]
    prose = "\n".join(PROSE)
    assert text == f"4 Rent\n\n{prose}\n\n{prose}\n\n5 Costs\n\nWho pays what."
    chunks = split(Document(text=text), chunk_tokens=50, count=lambda texts: [len(t) // 4 for t in texts])
    assert [chunk.headings for chunk in chunks] == [("Rent",), ("Costs",)]


def test_lines_of_a_pdf_with_the_same_distance_are_one_paragraph_whatever_it_is():
    for distance in (11, 15, 24):
        lines = [(10, 280 - distance * n, f"{PROSE[0]} {n}") for n in range(9)]
        assert parse("pdf", page_of(set_text(*lines)), "a.pdf")[1] == "\n".join(text for _, _, text in lines)


def test_the_size_of_a_font_of_a_pdf_may_be_in_its_matrix():
    body = "".join(f"BT /F 1 Tf 10 0 0 10 20 {200 - 12 * n} Tm ({line}) Tj ET\n" for n, line in enumerate(PROSE))
    page = page_of(b"BT /F 1 Tf 14 0 0 14 20 214 Tm (Rent) Tj ET\n" + body.encode())
    assert parse("pdf", page, "a.pdf")[1] == "Rent\n\n" + "\n".join(PROSE)


def test_lines_of_a_pdf_that_are_out_of_the_page_are_left_out():
    lines = [(10, 400, "Printed beside the page")] + [(10, 200 - 12 * n, line) for n, line in enumerate(PROSE)]
    text = parse("pdf", page_of(set_text(*lines, (10, 150, "The end."))), "a.pdf")[1]
    assert text == "\n".join(PROSE) + "\n\nThe end."


@pytest.mark.parametrize(("box", "x", "above", "below"), [
    ("/MediaBox[0 0 600 300]/CropBox[300 0 600 300]", 320, 280, 20),
    ("/MediaBox[1000 1000 1300 1300]", 1020, 1280, 1020),
    ("/MediaBox[-150 -150 150 150]", -130, 130, -130),
    ("/MediaBox[0 0 200 400]/Rotate 90", 20, 380, 20),
])  # fmt: skip
def test_a_pdf_is_read_within_the_borders_of_its_pages_wherever_they_are(box, x, above, below):
    places = (x, above, "Above"), (x, below, "Below"), (x - 100, (above + below) / 2, "Beside")
    words = "".join(f"BT /F 9 Tf {left} {height} Td ({word}) Tj ET " for left, height, word in places)
    text = parse("pdf", page_of(words.encode(), box=box.encode()), "a.pdf")[1]
    assert sorted(text.split()) == ["Above", "Below"]


def plain(*pages):
    """The text of pages, each a list of lines in one size."""
    return pages_text([[Line(line, 10.0) for line in page] for page in pages])


def test_a_sentence_that_goes_on_on_the_next_page_of_a_pdf_is_not_divided():
    assert plain(["It is"], [], ["large."], ["It is"]) == "It is\nlarge.\n\nIt is"
    assert plain(["Costs"], ["It is large."], ["and old"]) == "Costs\n\nIt is large.\n\nand old"


def running(*pages):
    """The lines of each page that are left."""
    return [part.split("\n") for part in plain(*pages).split("\n\n")]


def test_running_headers_and_footers_of_a_pdf_are_left_out():
    pages = [["Acme 2023", f"Text {n}{n}{n}", f"More {n}{n}{n}", f"Page {n} of 9", "Secret"] for n in range(1, 7)]
    assert running(*pages)[0] == ["Acme 2023", "Text 111", "More 111", "Page 1 of 9", "Secret"]
    assert running(*pages)[1:] == [page[1:3] for page in pages[1:]]
    assert running(*pages[:3]) == pages[:3], "in fewer pages, nothing runs"
    sides = [[("Left %d", "%d Right")[n % 2] % n, f"Text {n}{n}{n}", "end"] for n in range(9, 19)]
    assert running(*sides)[1:] == [page[1:2] for page in sides[1:]], "left and right pages differ"
    chapters = [[f"Chapter {'AABBB'[n // 4]} {n + 3}", f"Text {n}{n}{n}", "x" * n] for n in range(1, 20)]
    assert running(*chapters) == [page[1:] for page in chapters]


def test_first_lines_of_a_pdf_that_say_something_stay():
    for pages in (
        [[f"Invoice 2024-{n:04}", "Acme pays", f"{n}{n}{n} EUR"] for n in (388, 391, 392, 397, 401)],
        [[f"{n + 1} {'abcdefgh'[n]}", f"Text {n}{n}{n}", f"x{n}{n}{n}"] for n in range(8)],
        [["Only this"]] * 8,
        [[f"{n}", "Text"] for n in (3, 14, 15, 92, 65, 35)],
    ):
        assert [page[0] for page in running(*pages)] == [page[0] for page in pages]
    large = [[Line(f"Step {n}", 20.0), Line(f"Do {n}{n}{n}.", 10.0), Line("Go on.", 10.0)] for n in range(1, 9)]
    assert all(f"Step {n}" in pages_text(large) for n in range(1, 9))


def test_lines_of_odd_places_of_a_pdf_are_kept():
    some = random.Random(0)
    numbers = [0.0, 1e-9, 1e300, -5.0, 10.0, 12.0]
    pages = [[Line(first + second, *some.choices(numbers, k=3)) for second in "abcdefghi"] for first in "abcdefghi"]
    assert pages_text(pages).replace("\n", "") == "".join(line.text for page in pages for line in page)
    broken = page_of(b"BT /F 12 Tf 1 0 0 1e39 9 99 Tm (Acme)Tj 0 -1e39 Td (pays.)Tj ET " + ACME)
    assert "Acme" in parse("pdf", broken, "a.pdf")[1]
