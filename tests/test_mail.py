"""E-mails: subject, text, sender, recipients, date and quotations."""

import json
from email.message import EmailMessage

import pytest

from compmem import IndexConfig, MemoryIndex
from compmem.cli.formats import parse
from compmem.cli.inputs import documents, files
from compmem.cli.mail import without_quote_marks
from compmem.cli.text_decoding import UnreadableError
from tests.hashing import HashEncoder


def test_an_e_mail_has_its_subject_sender_and_text_without_attachments():
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["Date"] = "Kiln – Ofen", "Ana <a@x.example>", "Mon, 01 Jan 2024 10:00:00 +0000"
    mail.set_content("Ana buys the kiln in März.")
    mail.add_alternative("<p>Ana buys <b>it</b>.</p>", subtype="html")
    mail.add_attachment(b"\0\1", maintype="application", subtype="octet-stream", filename="a.bin")
    found = parse("eml", bytes(mail), "kiln.eml")
    assert (found.title, found.text) == ("Kiln – Ofen", "Ana buys the kiln in März.")
    assert found.context == "From: Ana <a@x.example>\nDate: 2024-01-01, 1 January 2024, 10:00"
    assert found.metadata == {"from": "a@x.example", "date": "2024-01-01T10:00:00+00:00"}
    page = EmailMessage()
    page.set_content("<h1>Kiln</h1><p>Ana buys it.</p>", subtype="html")
    assert parse("eml", bytes(page), "kiln.eml")[1] == "# Kiln\n\nAna buys it."
    assert parse("eml", b"Content-Type: text/plain; charset=none\n\nAna buys it.", "k.eml")[1] == "Ana buys it."
    with pytest.raises(UnreadableError, match="a header of the e-mail has more than 10,000 characters"):
        parse("eml", b"From: " + b"=?utf-8?q?a?= " * 1000 + b"\n\nAna.", "k.eml")


def test_an_e_mail_that_would_take_long_to_parse_is_refused():
    def nested(depth, lines):
        opened = "".join(f"Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n" for i in range(depth))
        return f"{opened}Content-Type: text/plain\n\n".encode() + b"a\n" * lines

    def parts(count, kind):
        each = f"--B\nContent-Type: {kind}\n\nx\n" * count
        return f"Content-Type: multipart/mixed; boundary=B\n\n{each}--B\n\nAna.\n--B--\n".encode()

    with pytest.raises(UnreadableError, match="more than 100 boundaries"):
        parse("eml", nested(300, 40_000), "a.eml")
    with pytest.raises(UnreadableError, match="the types of the e-mail's parts have more than 100,000 characters"):
        parse("eml", parts(12, "application/x; " + "a=b;" * 2400), "a.eml")
    assert parse("eml", nested(300, 9), "a.eml")[1] == "a\n" * 8 + "a"
    assert parse("eml", parts(500, "application/x"), "a.eml")[1] == "Ana."


def headed(**heads):
    told = "".join(f"{name}: {value}\n" for name, value in heads.items())
    return parse("eml", f"{told}\nAna buys it.".encode(), "a.eml")


def test_what_an_e_mail_says_of_itself_is_context_and_can_be_filtered(tmp_path):
    for name, sender, day in (("a", "Ana Ott <Ana@x.example>", 1), ("b", "bob@x.example", 2)):
        heads = f"From: {sender}\nTo: Eve <eve@x.example>,\n f@x.example\nDate: {day} Jan 2024 10:00 +0100\n"
        (tmp_path / f"{name}.eml").write_text(f"{heads}\nThe kiln was bought.\n")
    index = MemoryIndex.create(None, IndexConfig(encoder=HashEncoder()))
    index.add(documents(files([str(tmp_path)], report=pytest.fail), base=tmp_path, report=pytest.fail))

    def found(where):
        return [recall.chunk.document_id for recall in index.search("the kiln", filter=where, method="bm25")]

    assert found({"from": "ana@x.example"}) == ["a.eml"]
    assert found({"date": {">=": "2024-01-02"}}) == ["b.eml"]
    assert len(found({"to": {"contains": "f@x.example"}})) == 2
    assert [r.chunk.document_id for r in index.search("what did Ana Ott write", k=1, method="bm25")] == ["a.eml"]


def test_heads_of_an_e_mail_that_are_no_address_or_date_stay_as_they_are():
    found = headed(From="kiln", To="undisclosed-recipients:;", Date="yesterday", Cc="")
    assert found.metadata == {"from": "kiln", "to": ["undisclosed-recipients:;"], "date": "yesterday"}
    assert found.context == "From: kiln\nTo: undisclosed-recipients:;\nDate: yesterday"
    odd = headed(From="=?utf-8?q?A=00=ED=A0=80?= <a@x.example>", Subject="=?utf-8?q?=ED=A0=80=00?=")
    assert "\0" not in odd.title + json.dumps(odd.metadata, ensure_ascii=False) + odd.context
    assert (odd.title + odd.context).encode()


@pytest.mark.parametrize("damaged", ["<", "Ana <", "a@", "a@[1.2.3", "a@[\n ", "(" * 9000])
def test_an_e_mail_with_a_damaged_address_is_read(damaged):
    found = headed(From=damaged, Cc=damaged)
    assert (found.text, found.metadata) == ("Ana buys it.", {"from": damaged.strip(), "cc": [damaged.strip()]})


def mixed(kind, *parts):
    """An e-mail of parts, each a type and a text."""
    each = "".join(f"--B\nContent-Type: {inner}\n\n{text}\n" for inner, text in parts)
    return f"Content-Type: multipart/{kind}; boundary=B\n\n{each}--B--\n".encode()


PICTURE = "image/png\nContent-Disposition: inline", "x"
NOTE = "text/plain\nContent-Disposition: attachment", "A note."


@pytest.mark.parametrize(("data", "text"), [
    (mixed("alternative", ("text/plain", " "), ("text/html", "<p>Paid.</p>")), "Paid."),
    (mixed("alternative", ("text/html", "<p>Paid.</p>"), ("text/plain", "Sent.")), "Sent."),
    (mixed("related", ("text/html", "<p>Paid.</p>"), PICTURE, ("text/plain", "A note.")), "Paid."),
    (mixed("mixed", ("text/plain", "Paid."), PICTURE, ("text/html", "<p>Sent.</p>"), NOTE), "Paid.\n\nSent."),
    (mixed("mixed", ("text/plain", "Paid."), ("text/plain", "\0é")), "Paid."),
    (b"Subject: Kiln\n\n\x01Paid.", "\x01Paid."),
    (b"Content-Type: text/plain; *\n\nPaid.", "Paid."),
    (b"Content-Disposition: attachment; *\nSubject: Kiln\nTo: Ana\n\nPaid.", "To: Ana"),
])  # fmt: skip
def test_the_parts_of_an_e_mail_that_are_its_text_are_read(data, text):
    assert parse("eml", data, "a.eml").text == text


@pytest.mark.parametrize(("kind", "body"), [
    ("text/plain", "Größe".encode()),
    ("text/plain; charset=us-ascii", "Größe".encode()),
    ("text/plain; charset=none", "Größe".encode()),
    ("text/plain; charset=idna", "Größe".encode()),
    ("text/plain; charset=iso-8859-1", "Größe".encode("latin-1")),
    ("text/html", '<meta charset="iso-8859-15">Größe'.encode("latin-1")),
])  # fmt: skip
def test_an_e_mail_is_read_in_its_encoding(kind, body):
    assert parse("eml", f"Content-Type: {kind}\n\n".encode() + body, "a.eml").text == "Größe"


def test_many_recipients_are_shortened_in_the_context_only():
    found = headed(To=", ".join(f"person{n}@x.example" for n in range(300)))
    assert len(found.metadata["to"]) == 300
    assert len(found.context) < 220
    assert found.context.endswith("@x.example, ...")


def test_an_e_mail_without_text_is_found_by_what_it_says_of_itself():
    assert parse("eml", b"From: Ana <a@x.example>\n\n \n", "a.eml").text == "From: Ana <a@x.example>"


@pytest.mark.parametrize(("given", "text"), [
    ("No marks.\n", "No marks.\n"),
    ("Yes.\n\n> Hello,\n>\n> is it\n> paid?", "Yes.\n\nQuoted from an earlier message:\n\nHello,\n\nis it\npaid?"),
    ("Yes.\n\nAm 1. Mai schrieb Ana:\n> Paid?\n", "Yes.\n\nAm 1. Mai schrieb Ana:\n\nPaid?"),
    ("> Paid?\nYes.", "Quoted from an earlier message:\n\nPaid?\n\nYes."),
    ("Ana wrote:\n> B wrote:\n>> Paid?\n> Soon.\nYes.", "Ana wrote:\n\nB wrote:\n\nPaid?\n\nSoon.\n\nYes."),
    ("Yes.\n>> Paid?\n>\n> Sent.", "Yes.\n\nQuoted from an earlier message:\n\nPaid?\n\nSent."),
])  # fmt: skip
def test_quoted_lines_of_an_e_mail_have_no_marks_but_are_set_apart(given, text):
    assert without_quote_marks(given) == text
    assert parse("eml", f"Subject: Kiln\n\n{given}".encode(), "a.eml").text == text.strip()
