"""HTML pages as text."""

import contextlib
import time

import pytest

from compmem import Document
from compmem.cli.formats import parse
from compmem.cli.html_text import page_text
from compmem.cli.text_decoding import UnreadableError
from compmem.ingest.chunking import split

PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"><title> The
 lease </title><style>p {}</style></head><body><!-- no --><script>alert(1)</script>
<h1>Lease<a class="headerlink" href="#x">¶</a></h1><p>Acme <b>rents</b>
   the   building.<br>It is old.</p>
<h2>Who <em>pays</em></h2><ul><li><p>Acme pays the rent.</p></li><li>Bob pays the rest.</li></ul>
<table><tr><th>Year</th><th>Rent</th></tr><tr><td>2024</td><td>100</td></tr></table>
<pre>def f():
    return 1


# not collapsed</pre><div>End</div></body></html>"""


def test_html_keeps_headings_lists_tables_and_code():
    title, text = page_text(PAGE)
    assert title == "The lease"
    assert text == (
        "# Lease\n\nAcme rents the building.\nIt is old.\n\n"
        "## Who pays\n\n- Acme pays the rent.\n- Bob pays the rest.\n\n"
        "| Year | Rent |\n| --- | --- |\n| 2024 | 100 |\n\n```\ndef f():\n    return 1\n\n# not collapsed\n```\n\nEnd\n"
    )


@pytest.mark.parametrize(("rows", "text"), [
    (["<td><p>a|b</p><td>c<br>d", "<td colspan=2>e", "<th>f<td>"], "| a\\|b | c d |\n| --- | --- |\n| e |\n| f |  |"),
    (["<td>e", "<td><td>f"], "e\nf"),
    ([f"<td>{'a ' * 200}<p>b<td>c", "<td>d<td>e"], f"{'a ' * 199}a\nb\nc\n| d | e |\n| --- | --- |"),
    (["<td>a<td><ul><li>b<li>c</ul>"], "a |\n- b\n- c"),
    (["<td>a<td>b", "<td><table><tr><td>c<td>d</table><td>e"],
     "| a | b |\n| --- | --- |\n| c | d |\n| --- | --- |\ne"),
])  # fmt: skip
def test_a_table_of_a_page_is_written_as_one_unless_it_arranges_the_page(rows, text):
    assert page_text(f"<p>A<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table><p>Z")[1] == f"A\n\n{text}\n\nZ\n"


@pytest.mark.parametrize(("given", "text"), [
    ("<dt>Noise level</dt>\n <dd>46 dB</dd> <dt><b>Weight:</b></dt><dd><p>9 <b>kg</b></p></dd>",
     "Noise level: 46 dB\nWeight: 9 kg"),
    ("<dt>a<dd>b<dt>c<dd>d", "a: b\nc: d"),
    ("<div><dt>a</dt><dd>b</dd></div><div><dt>c</dt><dd>d</dd></div>", "a: b\n\nc: d"),
    ("<dt>a</dt><dt>b</dt><dd>c</dd><dd>d</dd>", "a\nb: c\nd"),
    ("<dt>Is it paid?</dt><dd>Yes.</dd>", "Is it paid?\nYes."),
    ("<dt>a<br>b</dt><dd>c</dd><dt>d</dt><dd><p>e</p><p>f</p></dd>", "a\nb\nc\nd\ne\nf"),
    ("<dt>a</dt><dd><ul><li>b</li></ul></dd><dt>c</dt><dd></dd>", "a\n- b\nc"),
    ("<dt>a</dt><dd>b<dl><dt>c</dt><dd>d</dd></dl></dd>", "a\nb\nc: d"),
    ("<dd>a</dd><dt></dt><dd>b</dd>", "a\nb"),
    ("<dt><b>a</b> </dt><dd><h2>b</h2></dd><dt><p>c</p></dt>d<dd>e</dd>", "a\n## b\nc\nd\ne"),
    ("<dt>\n<code>a</code>\n</dt>\n<dd>\nb <b>c</b>\n</dd>\n<dt>\nd\n</dt>\n<dd>\ne\n</dd>", "a: b c\nd: e"),
])  # fmt: skip
def test_a_term_of_a_page_and_its_definition_are_one_line(given, text):
    assert page_text(f"<p>A</p><dl>{given}</dl><p>Z")[1] == f"A\n\n{text}\n\nZ\n"


def test_a_question_about_a_row_of_a_page_is_answered_with_that_row_and_the_head():
    rows = "".join(f"<tr><td>Land{n}</td><td>EUR {20 + n}</td></tr>" for n in range(99))
    _, text = page_text(f"<table><tr><th>Country</th><th>Allowance</th></tr>{rows}</table>")
    chunks = list(split(Document(id="t", text=text), chunk_tokens=64, count=lambda texts: [len(t) // 4 for t in texts]))
    assert len(chunks) > 5
    assert all(chunk.headings[-1] == "| Country | Allowance |" for chunk in chunks[1:])
    assert all(len(sentence) < 30 for chunk in chunks for sentence in chunk.sentence_texts())


def test_html_without_title_takes_the_first_heading_and_any_encoding():
    for encoding, page in {
        "latin-1": "<meta charset=iso-8859-1><h1>Größe</h1>", "utf-8": "<h1>東京</h1>", "utf-16": "<h1>x</h1>"
    }.items():  # fmt: skip
        assert parse("html", page.encode(encoding), "a.html")[0] == page.partition("<h1>")[2].removesuffix("</h1>")


@pytest.mark.parametrize(("page", "title", "text"), [
    ("<h1>Kiln<br>of Ana</h1>", "Kiln of Ana", "# Kiln\nof Ana\n"),
    ("<h1><div>Kiln</div><div>of Ana</div></h1>", "Kiln of Ana", "# Kiln\n\nof Ana\n"),
    ("<h1>Fees</h1><fieldset><legend>Kiln</legend>Paid</fieldset>", "Fees", "# Fees\n\nKiln\n\nPaid\n"),
    ("<center>Kiln</center><center>Ana</center>", "", "Kiln\n\nAna\n"),
])  # fmt: skip
def test_words_of_a_page_are_apart_where_a_line_ends(page, title, text):
    assert page_text(page) == (title, text)


def test_html_that_is_not_shown_or_moves_about_the_site_is_left_out():
    page = """<body><nav>Home</nav><div role="navigation">Up</div><p hidden>old<p>Rent <span style="color: red;
    DISPLAY : None">secret</span>is due.<ul><li hidden="">x<li>May</ul><aside>Ads</aside>
    <main><aside>Note</aside><footer>Signed</footer></main><p hidden="until-found">More</p><footer>(c)</footer>"""
    assert page_text(page)[1] == "Rent is due.\n\n- May\n\nNote\n\nSigned\n\nMore\n"


HOSTILE = [
    "<a ", "<![", "<!--", "<?", "</a", "<", "&", "<a a=", "<p>", "<div></p>", "<script>", "<title>", "<p hidden>",
    "<br>\n", "<td> ", "<tr><td>x", "<table><tr><td>x", "<pre>\n",
    "<dl><dt>x<dd>y", "<dt>x<dd>y",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_for_html_grows_with_its_length(piece):
    def seconds(text):
        started = time.process_time()
        with contextlib.suppress(UnreadableError):
            page_text(text)
        return time.process_time() - started

    # One of four alternating runs: the caches of a busy machine are worse for a large page than for a small one.
    assert any(seconds(piece * 80_000) < 15 * max(seconds(piece * 8_000), 0.01) for _ in range(4))


def test_wide_html_is_read():
    assert page_text("<div>" * 2_000 + "deep" + "</div>" * 2_000)[1] == "deep\n"
    assert page_text("<p>" * 20_000 + "wide<")[1] == "wide<\n"


def test_boilerplate_is_known_by_its_id_or_class_outside_the_content():
    page = """<body class="with-sidebar nav"><div id="sidebar">Ads</div><ul class="Breadcrumbs big"><li>Home</li></ul>
        <div class="with-sidebar"><p>The lease ends.</p><div class="toc">1 Rent</div></div>
        <main class="sidebar"><div class="navigation">Steer by the stars.</div></main>
        <div class="footer">Imprint</div>"""
    assert page_text(page)[1].split("\n\n") == ["The lease ends.", "Steer by the stars.\n"]
