"""Files as documents: every format, folders, standard input, and what cannot be read."""

import io
import json
import logging
import os
import sys
import zipfile
from pathlib import Path

import pypdf
import pytest
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from compmem.cli.formats import parse
from compmem.cli.inputs import documents, files, path_id
from compmem.cli.record_text import json_text
from compmem.cli.text_decoding import UnreadableError, decode


def read(*sources, base=None, **options):
    """Documents and error messages of some sources."""
    errors = []

    def report(error):
        errors.append(str(error))

    found = files([str(s) for s in sources], report=report)
    return list(documents(found, base=base or Path.cwd(), report=report, **options)), errors


def docx(body, **parts):
    """A .docx file with this XML as its body."""
    kinds = "http://schemas.openxmlformats.org"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{kinds}/package/2006/content-types">'
            '<Default Extension="xml" ContentType="application/xml"/></Types>',
        )
        file.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{kinds}/package/2006/relationships"><Relationship Id="r" '
            f'Type="{kinds}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>'
            "</Relationships>",
        )
        file.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{kinds}/wordprocessingml/2006/main"><w:body>{body}</w:body></w:document>',
        )
        for name, text in parts.items():
            file.writestr(name, text)
    return out.getvalue()


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
    again, _ = read("docs/a.txt", docs / "a.txt", "./docs/../docs/a.txt")
    assert [d.id for d in again] == ["docs/a.txt"], "a file has one id, however it is named"


def test_an_id_says_which_file_it_is_the_same_from_everywhere(tmp_path, monkeypatch):
    project = tmp_path / "project"
    for folder in (project / "docs", tmp_path / "other" / "docs"):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(str(folder))
    (tmp_path / "link").symlink_to(project)
    outside = tmp_path / "other" / "docs" / "a.txt"
    expected = ["docs/a.txt", outside.as_posix()]
    for here, sources in {
        project: ["docs", "../other/docs"],
        project / "docs": ["a.txt", "../../other/docs/a.txt"],
        tmp_path / "other": [tmp_path / "link" / "docs", "docs"],
    }.items():
        monkeypatch.chdir(here)
        found, errors = read(*sources, base=tmp_path / "link")
        assert ([d.id for d in found], errors) == (expected, [])
    assert path_id(os.fsdecode(b"/x/\xff.txt"), tmp_path) != path_id(os.fsdecode(b"/x/\xfe.txt"), tmp_path)
    project.rename(tmp_path / "moved")
    assert [d.id for d in read(tmp_path / "moved" / "docs", base=tmp_path / "moved")[0]] == ["docs/a.txt"]


def test_the_folder_of_an_index_is_no_document(tmp_path, caplog):
    one, sharded, data = (tmp_path / "docs" / name for name in ("a.mem", "b.mem", "data"))
    for file in (one / "manifest.sqlite", one / "notes.txt", sharded / "shard-000" / "x.txt", data / "x.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    for folder in (sharded, data):
        (folder / "shards.json").write_text('{"shards": 1}')
    found, errors = read(tmp_path / "docs", base=tmp_path)
    assert ([d.id for d in found], errors) == (["docs/data/shards.json", "docs/data/x.txt"], [])
    assert [f"{folder}: the folder of an index, left out" in caplog.text for folder in (one, sharded)] == [True, True]
    assert read(one) == ([], [f"{one}: the folder of an index, not of documents"])


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
    assert [d.text for d in found] == ["a"], "a link and its file are one document"
    assert errors == []
    assert "out.txt: links out of" in caplog.text


def test_documents_are_read_one_at_a_time(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    walk = documents(files([str(tmp_path)], report=pytest.fail), base=tmp_path, report=pytest.fail)
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


def test_text_of_other_encodings_is_read_as_what_it_most_likely_is(caplog):
    said = "Er sagte “nein” – für 5 €"
    assert decode(said.encode("cp1252"), "alt.txt") == said
    assert "alt.txt: not UTF-8, read as Windows-1252" in caplog.text
    assert decode("Größe und Länge".encode() + b"\xff", "x") == "Größe und Länge\ufffd", "one damaged byte"
    assert decode("Größe".encode("utf-16-le"), "x") == decode("Größe".encode("utf-16-be"), "x") == "Größe"
    page = '<meta charset="windows-1251"><h1>Москва</h1>'
    assert decode(page.encode("cp1251"), "x", html=True) == page
    for quote in "'\"":
        declared = f"<?xml version={quote}1.0{quote} encoding={quote}windows-1251{quote}?><h1>Москва</h1>"
        assert decode(declared.encode("cp1251"), "x.xml") == declared
        assert decode(declared.encode("cp1251"), "x", html=True) == declared
        assert decode(declared.encode(), "x") == declared
    for unknown in ("windows-9999", "iso-8859-12"):
        page = f'<meta charset="{unknown}"><h1>Größe</h1>'
        assert decode(page.encode("cp1252"), "x", html=True) == page
    with pytest.raises(UnreadableError, match="binary"):
        decode(b"GIF89a\x01\x00", "x")


def test_what_cannot_be_read_is_named_and_the_others_go_on(tmp_path):
    good = tmp_path / "z.txt"
    good.write_text("good")
    cases = {
        "a.bin": (b"\x00\x01", "neither text nor HTML"),
        "a.rtf": (b"{\\rtf1 x}", "neither text nor HTML"),
        "b.csv": (b'a,b\n1,"' + b"x" * 140_000, "line 2: field larger"),
        "b.docx": (b"PK nonsense", "cannot be read as DOCX (BadZipFile"),
        "c.docx": (docx("", big="x" * (65 << 20)), "unpack to"),
        "d.docx": (docx("<w:p>"), "cannot be read as DOCX"),
        "d.html": (b"<div>" * 50_000, "nested tags"),
        "e.html": (b"<![<![<![", "contains no text"),
        "b.txt": (b"\0\1\2", "binary data, not text"),
        "c.txt": (b" \n\t", "contains no text"),
        "d.pdf": (b"%PDF-1.4 nonsense", "cannot be read as PDF"),
        "e.pdf": (pdf("Secret.", password="pw"), "the PDF is encrypted"),
        "f.pdf": (pdf(""), "the PDF contains no text"),
        "g.html": (b"\0\0\0", "binary data, not text"),
        "h.html": (b"<script>x</script>", "contains no text"),
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


def test_what_holds_text_is_read_whatever_it_is_called_and_the_rest_is_counted(tmp_path, caplog):
    made = {
        "a.png": b"\x89PNG\r\n\x1a\n\0\0", "b.png": b"\0", "core": b"\x7fELF\x02\x01",
        "m.py": b"# Rent\n# ----\nx = 1\n", "Makefile": b"all:\n\ttrue\n",
        "p": pdf("Page."), "q": b"<!DOCTYPE html><p>Hi",
        "blank.txt": b" \n\t", "long.txt": b"\n" * 20_000, "empty.md": b"", "blank.html": b"<p> </p>",
    }  # fmt: skip
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        found, errors = read(tmp_path, base=tmp_path)
    assert {d.id: (d.title, d.metadata["format"]) for d in found} == {
        "Makefile": ("Makefile", "txt"), "m.py": ("m.py", "txt"), "p": ("p", "pdf"), "q": ("q", "html"),
    }  # fmt: skip
    assert errors == []
    told = "7 file(s) without text left out: .html (1), .md (1), .png (2), .txt (2), core (1)"
    assert told in caplog.text


def test_a_folder_without_files_is_named(tmp_path):
    (tmp_path / ".hidden").write_text("x")
    assert read(tmp_path) == ([], [f"{tmp_path}: contains no file to read"])


def test_a_markdown_file_about_several_things_is_not_named_by_the_first(tmp_path):
    (tmp_path / "fleet.md").write_text("# Ferry Aurora\n\nFast.\n\n```sh\n# a comment\n```\n\n# Ferry Fjord\n\nSlow.\n")
    (tmp_path / "one.md").write_text("Ferry Aurora\n===\n\nFast.\n\n```sh\n# a comment\n```\n\n## Speed\n\nSlow.\n")
    (tmp_path / "kept.md").write_text("# Boiler\n\n<!--\n# old\n-->\n\nSlow.\n")
    (tmp_path / "README.md").write_text("# Boiler manual\n\nSlow.\n\n# Cleaning\n\nDaily.\n")
    (tmp_path / "parts.md").write_text("## Speed\n\nSlow.\n\n## Boats\n\nTwo.\n")
    assert [d.title for d in read(tmp_path)[0]] == [
        "Boiler manual", "fleet", "Boiler", "Ferry Aurora", "Speed"
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "title"), [
    ("---\nlayout: post\ntags: [a, b]\n---\n\n# Install the pump\n", "Install the pump"),
    ("---\ndate: 2024-01-01\n---\n\nAbout pumps.\n", ""),
    ("---\n# a comment\ntitle: Pumps\n---\n# Later\n", "Pumps"),
    ("---\n# Pumps\n---\nThey are old.\n", "Pumps"),
    ("```\n~~~\n# none\n```\n# Pumps\n", "Pumps"),
    ("````\n```\n# none\n```\n````\n# Pumps\n", "Pumps"),
    ("```\ncode\n```\n---\n# Pumps\n", "Pumps"),
])  # fmt: skip
def test_the_title_of_a_markdown_file_is_neither_front_matter_nor_code(text, title):
    assert parse("md", text.encode(), "a.md").title == title


def test_a_word_document_keeps_its_title_and_table():
    def paragraph(text, style=""):
        named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
        return f"<w:p>{named}<w:r><w:t>{text}</w:t></w:r></w:p>"

    row = "".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in ("Rent", "100"))
    data = docx(paragraph("Lease", "Heading1") + paragraph("Acme rents.") + f"<w:tbl><w:tr>{row}</w:tr></w:tbl>")
    found, errors = read("-", stdin=io.BytesIO(data), stdin_format="docx")
    assert errors == []
    assert (found[0].title, found[0].text) == ("Lease", "# Lease\n\nAcme rents.\n\n| Rent | 100 |\n| --- | --- |\n")


def test_a_word_document_with_too_much_in_it_is_refused():
    with pytest.raises(UnreadableError, match="that unpack to"):
        parse("docx", docx("<w:t/>" * 1_000_000), "a.docx")
    for begin in ("begin", "&#98;egin"):
        with pytest.raises(UnreadableError, match="too many fields without an end"):
            parse("docx", docx(f'<w:fldChar w:fldCharType="{begin}"/>' * 2000), "a.docx")
    others = {"picture": b"\x89PNG\r\n", "odd": b'<?xml encoding="none"?><a/>'}
    assert parse("docx", docx("<w:p><w:r><w:t>Acme.</w:t></w:r></w:p>", **others), "a.docx")[1] == "Acme.\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_word_document_with_entities_is_refused(encoding):
    declared = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE w [<!ENTITY a "{"A" * 99}">]>'
    part = f'{declared}<w:document xmlns:w="w"><w:body>&a;</w:body></w:document>'.encode(encoding)
    with pytest.raises(UnreadableError, match="a part has a document type definition"):
        parse("docx", docx("", **{"word/styles.xml": part}), "a.docx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    assert read(tmp_path)[1] == [f"{tmp_path}/a.txt: Permission denied"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[1]", "expected a JSON object, not list"),
        (b'{"title": "x"}', "'text' is missing or empty"),
        (b'{"text": "  "}', "'text' is missing or empty"),
        (b'{"text": 3}', "'text' is missing or empty"),
        (b'{"text": "x", "title": 3}', "'title' must be text"),
        (b'{"text": "x", "id": true}', "'id' must be text or a whole number"),
        (b'{"text": "x", "metadata": [1]}', "'metadata' must be a JSON object"),
        (b'{"text": "x", "metadata": ""}', "'metadata' must be a JSON object"),
        (b'{"text": "x", "metadata": {"a": NaN}}', "metadata 'a' is not JSON"),
        (b'{"text": "x", "metadata": {"a": 1e999}}', "metadata 'a' is not JSON"),
        (b'{"text": "x", "metadata": {"a": "\\u0000"}}', "metadata 'a' has a NUL character"),
        (b'{"text": "x", "metadata": {"a": "\\ud800"}}', "metadata 'a' is not JSON"),
        (b'{"text": "lone \\ud800"}', "its text has the lone surrogate '\\ud800' at 5"),
        (b'{"text": "x", "id": "c\\u0000"}', "its id must be a string without NUL characters"),
        (b'{"text": 3, "body": "y"}', "'text' is missing or empty"),
        (b'{"text": "", "body": "y"}', "'text' is missing or empty"),
        (b'{"body": ""}', "'text' is missing or empty"),
        (b'{"title": "x", "context": "y", "metadata": {"body": "z"}}', "'text' is missing or empty"),
        (b'{"text": "x", "title": 3, "body": "y"}', "'title' must be text"),
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


def lines(*objects):
    """The documents of these objects as lines."""
    data = "\n".join(json.dumps(one) for one in objects).encode()
    found, errors = read("-", stdin=io.BytesIO(data), stdin_format="jsonl")
    assert errors == []
    return found


def test_other_fields_of_a_line_with_a_text_are_metadata():
    found = lines(
        {"ts": "2024-06-03T09:01", "user": "len", "text": "yes", "path": "x", "metadata": {"user": "L", "format": "y"}},
        {"ts": "2024-06-03T09:02", "user": "raj", "text": "yes", "tags": ["a", {"b": 1}]},
        {"ts": "2024-06-03T09:02", "user": "raj", "text": "yes", "id": 7},
    )
    file = {"path": "-", "format": "jsonl"}
    assert [d.text for d in found] == ["yes"] * 3
    assert found[0].metadata == {"ts": "2024-06-03T09:01", "user": "L", **file}
    assert found[1].metadata == {"ts": "2024-06-03T09:02", "user": "raj", "tags": ["a", {"b": 1}], **file}
    assert found[2].id == "7"
    assert len({d.id for d in found}) == 3, "what differs in other fields is another document"


def test_a_line_without_a_text_is_a_record_as_in_a_json_file():
    row = {"id": "INC-1", "cause": "expired\ncertificate", "open": False, "title": "Payments", "log": ["a", "b"]}
    long = {"id": 1.5, "context": "owner: Ann", "metadata": {"year": 2024}, "text": None, "note": "n " * 900}
    one, two = lines(row, long)
    assert (one.id, one.title, one.text) == ("INC-1", "Payments", json_text(json.dumps(row)))
    assert one.metadata == {"cause": "expired\ncertificate", "open": False, "path": "-", "format": "jsonl"}
    assert two.text == "id: 1.5; note: " + ("n " * 900).strip()
    assert (two.context, two.metadata) == ("owner: Ann", {"year": 2024, "path": "-", "format": "jsonl"})


def test_a_name_that_may_be_a_mistake_is_told_once(caplog):
    for _ in range(2):
        caplog.clear()
        lines(
            {"text": "a", "titel": "A", "user": "x", "content": "y", "ID": 3, "Text": "z", "test": 1, "n" * 99: 1},
            {"text": "b", "titel": "B", "metadta": {}},
            {"Text": "c"},
            {"textt": "d"},
        )
        assert [record.getMessage() for record in caplog.records] == [
            "-, line 1: the name 'titel' is kept as it is; is 'title' meant?",
            "-, line 1: the name 'ID' is kept as it is; is 'id' meant?",
            "-, line 2: the name 'metadta' is kept as it is; is 'metadata' meant?",
            "-, line 3: the name 'Text' is kept as it is; is 'text' meant?",
            "-, line 4: the name 'textt' is kept as it is; is 'text' meant?",
        ]


def test_lines_without_an_id_get_one_by_content(caplog):
    lines = io.BytesIO(b'{"text": "one"}\n{"text": "two"}\n{"text": "one"}\n')
    found, errors = read("-", stdin=lines, stdin_format="jsonl")
    assert [d.text for d in found] == ["one", "two"]
    assert errors == []
    assert "given twice, the second is left out" in caplog.text


def test_one_id_for_two_documents_is_an_error():
    lines = b'{"id": "a", "text": "one"}\n{"id": "a", "text": "two"}\n{"id": null, "text": "three"}'
    found, errors = read("-", stdin=io.BytesIO(lines), stdin_format="jsonl")
    assert [d.text for d in found] == ["one", "three"]
    assert errors == ["-, line 2: another document has the id 'a'"]


def test_a_line_of_two_files_is_one_document(tmp_path, caplog):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}\n{"id": "k", "text": "two", "year": 2024}\n')
    found, errors = read(tmp_path / "a.jsonl", tmp_path / "b.jsonl", base=tmp_path)
    assert [(d.text, d.metadata["path"]) for d in found] == [("one", "a.jsonl"), ("two", "a.jsonl")]
    assert errors == [] and caplog.text.count("given twice, the second is left out") == 2


@pytest.mark.parametrize("other", [{"metadata": {"year": 2}}, {"context": "by Bo"}])
def test_documents_that_differ_beside_their_text_are_two(other, caplog):
    lines = [json.dumps({"id": "a", "text": "one"} | more).encode() for more in ({}, other)]
    found, errors = read("-", stdin=io.BytesIO(b"\n".join(lines)), stdin_format="jsonl")
    assert len(found) == 1 and errors == ["-, line 2: another document has the id 'a'"]
    assert not caplog.text


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


@pytest.mark.parametrize(
    ("module", "form", "data"), [("pypdfium2", "pdf", b"%PDF-1.4"), ("mammoth", "docx", b""), ("lxml", "html", b"<p>")]
)
def test_a_parser_that_is_not_installed_is_named(monkeypatch, module, form, data):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs {module}: pip install "compmem\[formats\]"'):
        parse(form, data, f"a.{form}")
