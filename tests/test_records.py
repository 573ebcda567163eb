"""Tables and JSON as text in which every value has its name."""

import json
import time

import pytest

from compmem.cli.record_text import csv_text, json_text


def test_tables_and_json_name_every_value():
    assert csv_text('Name;Born\n"Finch; Dora";Leeds\n;\nBob;"a\nb"\n') == (
        "Name: Finch; Dora; Born: Leeds\n\nName: Bob; Born: a b"
    )
    assert csv_text("a\tb\n1\t2\t3\n") == "a: 1; b: 2; 3"
    assert csv_text("only a line") == "only a line"
    value = {
        "company": "Acme",
        "open": True,
        "none": None,
        "tenants": [{"name": "Bob", "year": 2020}],
        "tags": ["x", 1],
    }
    assert json_text(json.dumps(value)) == "company: Acme; open: true\n\ntenants: name: Bob; year: 2020\n\ntags: x, 1"
    for text in ("// a comment\n{}", "[" * 100_000):
        assert json_text(text) == text
    long = "n" * 20_000
    assert len(csv_text(long + "\n" + "1\n" * 20_000)) < 70 * 20_000
    assert len(json_text(json.dumps({long: [[1]] * 10_000}))) < 70 * 10_000


def test_the_header_of_a_table_is_found_below_its_title():
    assert csv_text("Prices, May\n\nItem;Net;Gross\nBolt;1,5;2\nNut;0,5;1\n") == (
        "Prices, May\n\nItem: Bolt; Net: 1,5; Gross: 2\n\nItem: Nut; Net: 0,5; Gross: 1"
    )
    assert csv_text("sep=|\nItem|Net\nBolt, long|1\n") == "Item: Bolt, long; Net: 1"
    assert csv_text("Item,,Net\nBolt,x,1\nNut,y,2\n") == "Item: Bolt; x; Net: 1\n\nItem: Nut; y; Net: 2"
    assert csv_text("Note\n1\n2\n") == "Note: 1\n\nNote: 2"
    assert csv_text("\n") == "\n"


@pytest.mark.parametrize(("table", "text"), [
    ("name;price\nA;1,5\nB;2,5\n", "name: A; price: 1,5\n\nname: B; price: 2,5"),
    ("name\ttext\nA\tone, two, three\nB\tx, y, z\n", "name: A; text: one, two, three\n\nname: B; text: x, y, z"),
    ("name;text\nA;one, two, three\nB;x, y, z\nC;a, b\n", "name: A; text: one, two, three\n\nname: B; text: x, y, z\n\n"
     "name: C; text: a, b"),
    ("name,text\nA,a|b|c\nB,d|e|f\n", "name: A; text: a|b|c\n\nname: B; text: d|e|f"),
    ('name, text\nA, "x, y"\n', "name: A; text: x, y"),
    ('sep= \na b\nc  "d e"\n', "a: c; d e"),
    ('sep="\na,b\n1,2\n', 'sep="\n\na: 1; b: 2'),
])  # fmt: skip
def test_the_mark_between_the_cells_of_a_table_is_found_beside_marks_in_them(table, text):
    assert csv_text(table) == text


def test_the_time_for_a_table_grows_with_its_size():
    def seconds(n):
        began = time.process_time()
        csv_text("a," * n + "\n" + "x\n" * n)
        return time.process_time() - began

    assert min(seconds(40_000) for _ in range(3)) < 40 * max(seconds(4000), 0.002)


def test_a_record_has_its_small_parts_and_times_as_dates_on_its_line():
    row = {"ts": "1714986120.000200", "user": {"name": "Ann", "id": 7}, "seen_at": 1714986120123, "size": 1714986120}
    line = "ts: 2024-05-06 09:02:00; user name: Ann; user id: 7; seen_at: 2024-05-06 09:02:00; size: 1714986120"
    assert json_text(json.dumps([row])) == line
    assert json_text(json.dumps({"messages": [row]})) == f"messages: {line}"
    assert json_text(json.dumps({"a": 1, "user": {"name": "Ann"}})) == "a: 1\n\nuser: name: Ann"  # no record
    plain = {"real_time": 1714986120, "date": "1714986120", "created": "1714986", "bytes_sent": 1714986120}
    assert (
        json_text(json.dumps([plain]))
        == "real_time: 1714986120; date: 1714986120; created: 1714986; bytes_sent: 1714986120"
    )
    deep = {"user": {"name": {"first": "Ann"}}, "many": {str(n): n for n in range(9)}}
    assert json_text(json.dumps([deep])).count("\n\n") == 1
