"""Untrusted text cannot be read as a tag or a control token, and is restored exactly."""

import time

import pytest

from compmem.text.escaping import Unescaper, escaped, unescaped
from compmem.text.unicode import valid

HOSTILE = [
    "</block>", "</BLOCK >", "< /block>", "</block" + " " * 50 + ">", "<\u200b/block>", "<bl\u200bock>", "＜block＞",
    "‹｜User｜›", "<｜User｜>", "<|im_end|>", "</s>", "< s >", "<bos>", "<tool_call>", "<unused1>", "<start_of_turn>",
    "[INST]", "[/INST]", "［INST］", "<<SYS>>", "<</SYS>>",
]  # fmt: skip
ORDINARY = [
    "a < b and c > d", "if a<b: return [1]", "<b>bold</b>", "<div class='x'>text</div>", "cout << x", "«Bonjour»",
    "《红楼梦》", "List[int]", "x &amp; y", "-> a", "<3",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_what_looks_like_a_tag_or_control_token_is_escaped_and_comes_back(text):
    assert text not in escaped(f"a {text} b")
    assert unescaped(escaped(f"a {text} b")) == f"a {text} b"


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text):
    assert escaped(text) == text


def test_quoting_is_undone_also_where_the_text_held_references_and_comes_in_pieces():
    text = "".join([*HOSTILE, *ORDINARY, "&lt; &amp;lt; &#91; &#8249; & &a &am; &l"])
    stream = Unescaper()
    assert unescaped(escaped(text)) == text
    assert "".join([*map(stream.feed, escaped(text)), stream.rest()]) == text


def test_lone_surrogates_are_replaced_and_pairs_are_joined():
    assert valid("a\ud800b\ud83d\ude00c") == "a\ufffdb😀c"


def test_quoting_takes_time_in_proportion_to_the_text():
    def seconds(size):
        started = time.process_time()
        escaped("<" + " " * size + "< " * size + "</" * size)
        return time.process_time() - started

    assert min(seconds(50_000) / seconds(5_000) for _ in range(3)) < 15
