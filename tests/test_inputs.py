"""Files as documents: every format, folders, standard input, and what cannot be read."""

import io
import logging
import os
import time

import pypdf
import pytest
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from compmem.cli.html import page_text
from compmem.cli.inputs import count_files, decode, documents


def read(*sources, **options):
    """Documents and error messages of some sources."""
    errors = []
    found = list(documents([str(s) for s in sources], report=lambda e: errors.append(str(e)), **options))
    return found, errors


def pdf(*pages, title="", password=""):
    """A PDF with a line of text on each page."""
    writer = pypdf.PdfWriter()
    font = DictionaryObject({
        NameObject("/Type"): NameObject("/Font"),
        NameObject("/Subtype"): NameObject("/Type1"),
        NameObject("/BaseFont"): NameObject("/Helvetica"),
    })  # fmt: skip
    for text in pages:
        page = writer.add_blank_page(300, 300)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_a_folder_is_read_in_order_with_ids_titles_and_metadata(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / ".git").mkdir()
    (docs / ".git" / "x.txt").write_text("hidden")
    (docs / ".secret.txt").write_text("hidden")
    (docs / "b.md").write_text("intro\n\n```\n# no heading\n```\n\n# The *lease* #\n\nText.")
    (docs / "a.txt").write_text("Rent\n====\n\nThe rent is due.")
    (docs / "c.html").write_text("<html><head><title>Who pays</title></head><body><p>Acme pays.</p></body></html>")
    (docs / "sub" / "d.pdf").write_bytes(pdf("First page.", "Second page.", title="Terms"))
    (docs / "sub" / "e.md").write_text('---\nauthor: x\ntitle: "From the front"\n---\n# Later\n')
    (docs / "f.jsonl").write_text(
        '{"id": 7, "title": "T", "text": "Line.", "metadata": {"year": 2024}}\n\n{"text": "Two."}\n'
    )
    found, errors = read("docs")
    assert errors == []
    assert [d.id for d in found[:3]] == ["docs/a.txt", "docs/b.md", "docs/c.html"]
    assert [d.title for d in found] == ["Rent", "The *lease*", "Who pays", "T", "", "Terms", "From the front"]
    assert [d.id for d in found[3:]] == ["7", found[4].id, "docs/sub/d.pdf", "docs/sub/e.md"]
    assert found[3].metadata == {"path": "docs/f.jsonl", "format": "jsonl", "year": 2024}
    assert found[0].metadata == {"path": "docs/a.txt", "format": "txt"}
    assert found[5].text == "First page.\n\nSecond page."
    assert found[2].text == "Acme pays.\n"
    assert count_files(["docs", "-"]) == 7
    again, _ = read("docs/a.txt", docs / "a.txt", "./docs/../docs/a.txt")
    assert [d.id for d in again] == ["docs/a.txt"], "a file has one id, however it is named"


def test_a_folder_elsewhere_is_named_by_its_last_part(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path / "here")
    assert [d.id for d in read("../there")[0]] == ["there/a.txt"]
    monkeypatch.chdir(tmp_path / "there")
    assert [d.id for d in read(".")[0]] == ["a.txt"]


def test_links_that_leave_the_folder_are_not_followed(tmp_path, caplog):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.txt").write_text("secret")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("a")
    (docs / "inside.txt").symlink_to("a.txt")
    (docs / "out.txt").symlink_to(tmp_path / "secret" / "s.txt")
    (docs / "folder").symlink_to(tmp_path / "secret")
    (docs / "circle").symlink_to(docs)
    (docs / "broken.txt").symlink_to("nowhere")
    found, errors = read(docs)
    assert [d.text for d in found] == ["a", "a"]
    assert errors == []
    assert "out.txt: leads out of" in caplog.text


def test_documents_are_read_one_at_a_time(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    walk = documents([str(tmp_path)], report=pytest.fail)
    assert next(walk).text == "a"
    (tmp_path / "b.txt").write_text("changed since")
    assert next(walk).text == "changed since"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("Größe 東京".encode(), "Größe 東京"),
        (b"\xef\xbb\xbf" + "Größe".encode(), "Größe"),
        ("Größe 東京".encode("utf-16"), "Größe 東京"),
        (b"\xfe\xff" + "Größe".encode("utf-16-be"), "Größe"),
        ("Größe".encode("utf-32"), "Größe"),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"", ""),
    ],
)
def test_encodings(data, expected, caplog):
    assert decode(data, "f") == expected
    assert not caplog.records


def test_text_that_is_not_utf8_is_read_as_latin_1_with_a_warning(caplog):
    assert decode("Größe".encode("latin-1"), "alt.txt") == "Größe"
    assert "alt.txt: not UTF-8, read as Latin-1" in caplog.text


def test_what_cannot_be_read_is_named_and_the_others_go_on(tmp_path):
    good = tmp_path / "z.txt"
    good.write_text("good")
    cases = {
        "a.bin": (b"x", "unknown kind of file; known are .txt"),
        "b.txt": (b"\0\1\2", "binary data, not text"),
        "c.txt": (b" \n\t", "holds no text"),
        "d.pdf": (b"%PDF-1.4 nonsense", "cannot be read as PDF"),
        "e.pdf": (pdf("Secret.", password="pw"), "the PDF is encrypted"),
        "f.pdf": (pdf(""), "the PDF holds no text"),
        "g.html": (b"\0\0\0", "binary data, not text"),
        "h.html": (b"<script>x</script>", "holds no text"),
        "i.txt": (b"\xff\xfeabc", "not utf-16"),
    }
    for name, (data, _) in cases.items():
        (tmp_path / name).write_bytes(data)
    found, errors = read(*(tmp_path / n for n in cases), tmp_path / "missing.txt", good)
    assert [d.text for d in found] == ["good"]
    assert len(errors) == len(cases) + 1
    for (name, (_, message)), error in zip(cases.items(), errors[:-1], strict=True):
        assert name in error
        assert message in error
        assert "\n" not in error
    assert errors[-1].endswith("missing.txt: no such file or folder")


def test_a_pdf_that_opens_without_a_password_is_read(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("Readable.", password=""))
    assert read(tmp_path / "a.pdf")[0][0].text == "Readable."
    assert read(tmp_path / "a.pdf")[0][0].title == "a"


def test_unknown_kinds_in_a_folder_are_counted(tmp_path, caplog):
    for name in ("a.png", "b.png", "Makefile", "c.txt"):
        (tmp_path / name).write_text("x")
    with caplog.at_level(logging.WARNING):
        found, errors = read(tmp_path)
    assert len(found) == 1
    assert errors == []
    assert "3 file(s) of unknown kinds left out: .png (2), Makefile (1)" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    assert read(tmp_path)[1] == [f"{tmp_path}/a.txt: Permission denied"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[1]", "a JSON object is wanted, not list"),
        (b'{"title": "x"}', "'text' is missing or empty"),
        (b'{"text": "  "}', "'text' is missing or empty"),
        (b'{"text": 3}', "'text' is missing or empty"),
        (b'{"text": "x", "title": 3}', "'title' must be text"),
        (b'{"text": "x", "id": true}', "'id' text or a whole number"),
        (b'{"text": "x", "metadata": [1]}', "'metadata' must be a JSON object"),
        (b'{"text": "x", "body": "y"}', "unknown name 'body'"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, ""),
    ],
)
def test_a_broken_json_line_is_named_by_file_and_number(tmp_path, line, message):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n' + line + b'\n{"text": "three"}')
    found, errors = read(path)
    assert [d.text for d in found] == ["one", "three"]
    assert len(errors) == 1
    assert "d.jsonl, line 2: " in errors[0]
    assert message in errors[0]


def test_lines_without_an_id_get_one_by_content(caplog):
    lines = io.BytesIO(b'{"text": "one"}\n{"text": "two"}\n{"text": "one"}\n')
    found, errors = read("-", stdin=lines, stdin_format="jsonl")
    assert [d.text for d in found] == ["one", "two"]
    assert errors == []
    assert "given twice, the second is left out" in caplog.text


def test_one_id_for_two_documents_and_text_that_cannot_be_kept_are_errors():
    lines = rb"""{"id": "a", "text": "one"}
{"id": "a", "text": "two"}
{"id": "b", "text": "lone \ud800 surrogate"}
{"id": "c\u0000", "text": "three"}
{"id": "d", "text": "four"}"""
    found, errors = read("-", stdin=io.BytesIO(lines), stdin_format="jsonl")
    assert [d.id for d in found] == ["a", "d"]
    assert errors == [
        "-: another document has the id 'a'",
        "-: holds a lone surrogate, '\\ud800'",
        "-: the id holds a NUL character",
    ]


@pytest.mark.parametrize(
    ("form", "data", "text"),
    [
        ("txt", b"Plain.", "Plain."),
        ("md", b"# Title\n", "# Title\n"),
        ("html", b"<h1>Title</h1>", "# Title\n"),
        ("pdf", pdf("Page."), "Page."),
    ],
)
def test_standard_input(form, data, text):
    found, errors = read("-", stdin=io.BytesIO(data), stdin_format=form)
    assert [(d.text, d.metadata) for d in found] == [(text, {"path": "-", "format": form})]
    assert errors == []


def test_standard_input_must_be_handed_in():
    with pytest.raises(ValueError, match="needs stdin="):
        read("-")


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
    title, text = page_text(PAGE.encode())
    assert title == "The lease"
    assert text == (
        "# Lease\n\nAcme rents the building.\nIt is old.\n\n"
        "## Who pays\n\n- Acme pays the rent.\n- Bob pays the rest.\n\n"
        "Year | Rent\n2024 | 100\n\n```\ndef f():\n    return 1\n\n# not collapsed\n```\n\nEnd\n"
    )


def test_html_without_title_takes_the_first_heading_and_any_encoding():
    assert page_text("<meta charset=iso-8859-1><h1>Größe</h1>".encode("latin-1"))[0] == "Größe"
    assert page_text("<h1>東京</h1>".encode())[0] == "東京"
    assert page_text("<p>x</p>".encode("utf-16"))[1] == "x\n"


def test_html_of_any_depth_is_read():
    started = time.perf_counter()
    assert page_text(b"<div>" * 50_000 + b"deep" + b"</div>" * 50_000)[1] == "deep\n"
    assert page_text(b"<p>" * 20_000 + b"wide<")[1] == "wide<\n"
    assert time.perf_counter() - started < 20
