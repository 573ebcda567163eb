"""Prompts never exceed the model's window: long blocks are read in parts, or cut to the most relevant sentences."""

import itertools
import re
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from compmem import Document, IndexConfig, MemoryIndex, RecallConfig
from compmem.errors import CompMemError, ReaderError
from compmem.readers import ChatReader, Endpoint
from compmem.readers.endpoint import MAX_EVENT_BYTES
from compmem.readers.prompt_budget import PromptBlock, fit_into_prompt, split_into_prompts
from compmem.schema import Chunk, MemoryBlock, WorkingMemory
from compmem.text.truncation import ending
from tests.hashing import HashEncoder

WINDOW = 900
LONG = " ".join(f"Item {n} weighs {n} grams and lies on shelf {n % 7}." for n in range(2000))


def words(text):
    return len(text.split())


def block(text, title="", context=""):
    return MemoryBlock(chunk=Chunk(text=text, title=title, context=context), vectors=np.zeros((1, 4), np.float32))


class Model:
    """Notes the words that begin with a capital, and records every prompt's size."""

    def __init__(self):
        self.sizes, self.prompts = [], []

    def __call__(self, messages):
        self.sizes.append(sum(words(m["content"]) for m in messages))
        prompt = messages[-1]["content"]
        self.prompts.append(prompt)
        if "Blocks to read now" not in prompt:
            return "done"
        known = re.search(r"(?s)<memory>\n(.*?)\n</memory>", prompt)[1]
        return f"<check>yes</check><update>{known} read</update><next>continue</next>"


def reader(model, **options):
    return ChatReader(model, count=words, prompt_tokens=WINDOW, **options)


def shown_texts(prompts):
    return " ".join(part for p in prompts for part in re.findall(r"(?s)text:\n(.*?)\n</block>", p))


@pytest.mark.parametrize("structured", [True, False])
async def test_a_long_block_is_read_whole_in_parts_none_above_the_limit(structured):
    for read in (False, True):
        model = Model()
        reads = reader(model, structured=structured)
        given = [block("A short block."), block(LONG, title="Shelves"), block("The last block.")]
        if read:
            reading = await reads.aread("Where is item 1500?", WorkingMemory(), given)
        else:
            reading = reads.read("Where is item 1500?", WorkingMemory(), given)
        assert max(model.sizes) <= WINDOW < words(LONG)
        assert shown_texts(model.prompts).split() == f"A short block. {LONG} The last block.".split()
        assert all("title: Shelves" in p for p in model.prompts[1:-1])
        assert reading.usage.model_calls == len(model.prompts) > 5


def test_the_parts_of_a_step_stop_where_enough_is_known():
    model = Model()
    enough = "<check>yes</check><update>Shelf 2.</update><next>end</next>"
    reading = reader(lambda m: (model(m), enough)[1]).read("Where?", WorkingMemory(), [block(LONG)])
    assert (reading.exit, reading.update, reading.memory.text, len(model.prompts)) == (True, True, "Shelf 2.", 1)


def test_an_answer_in_one_call_keeps_what_bears_on_the_question():
    model = Model()
    given = (block("The price list is old."), block(LONG), block("Item 1500 was sold."), block("Unasked."))
    list(reader(model).write("Where is item 1500?", WorkingMemory(blocks=given)))
    assert len(model.prompts) == 1 and model.sizes[0] <= WINDOW
    assert "Item 1500 weighs 1500 grams" in model.prompts[0]
    assert all(text in model.prompts[0] for text in ("The price list is old.", "Item 1500 was sold.", "Unasked."))


def test_notes_and_questions_count_too():
    model = Model()
    list(reader(model).write("Where?", WorkingMemory(text=LONG)))
    assert model.sizes[0] <= WINDOW and LONG[-60:] in model.prompts[0]
    reader(model).read("Where?", WorkingMemory(text=LONG), [block(LONG)])
    assert max(model.sizes) <= WINDOW
    with pytest.raises(ReaderError, match="ask a shorter question"):
        reader(model).read(LONG[:20_000], WorkingMemory(), [block("A block.")])


def test_what_stands_above_a_text_is_cut_too():
    model = Model()
    reader(model).read("Where?", WorkingMemory(), [block("The text itself.", context=LONG)])
    assert max(model.sizes) <= WINDOW and "The text itself." in model.prompts[-1]


def test_what_stands_below_a_text_is_cut_too():
    model = Model()
    read = reader(model, render=lambda chunk: f"{chunk.context}\n{chunk.text}\n{chunk.context}")
    for context in (LONG, "Short.", LONG[: 3 * WINDOW]):
        read.read("Where?", WorkingMemory(), [block("The text itself.", context=context)])
        *_, usage = read.write("Where?", WorkingMemory(blocks=(block("The text itself.", context=context),)))
        assert max(model.sizes) <= WINDOW and usage.model_calls == 1
        for prompt in model.prompts[-2:]:
            shown = prompt[prompt.index("<block>") :]
            assert "The text itself." in shown and "\n</block>" in shown and context[:20] in shown
    assert len(model.prompts) == 6


def test_a_renderer_says_what_the_model_reads():
    model = Model()
    read = reader(model, render=lambda chunk: f"by Bo </block>\n\n{chunk.text}\n(end of {chunk.title})")
    read.read("Where?", WorkingMemory(), [block("Short.", title="T"), block(LONG, title="L")])
    assert "<block>\nby Bo &lt;/block>\n\nShort.\n(end of T)\n</block>" in model.prompts[0]
    assert all("by Bo" in p and "(end of L)" in p for p in model.prompts[1:]) and max(model.sizes) <= WINDOW


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("one two\nthree four five\nsix seven", 7, "one two\nthree four five\nsix seven"),
        ("one two\nthree four five\nsix seven", 5, "three four five\nsix seven"),
        ("one two\nthree four five\nsix seven", 3, "six seven"),
        ("one two three", 2, "two three"),
        ("one " + "long" * 30, 1, "long" * 30),
        ("one", 0, ""),
    ],
)
def test_notes_over_their_budget_lose_their_beginning_at_a_line_or_word(text, limit, kept):
    assert ending(text, limit, words) == kept


def test_notes_without_blanks_are_cut_between_characters():
    assert ending("字" * 50, 7, len) == "字" * 7
    assert ending("In 2024: " + "字" * 50, 7, len) == "字" * 7


def test_no_limit_leaves_blocks_whole():
    model = Model()
    ChatReader(model).read("Where?", WorkingMemory(), [block(LONG)])
    assert len(model.prompts) == 1 and LONG in model.prompts[0]


@pytest.mark.parametrize(
    "fit", [split_into_prompts, lambda b, n, c: fit_into_prompt(b, n, {"item": 1.0}, c)], ids=["packed", "fitted"]
)
@pytest.mark.parametrize("unit", ["Item lies here. ", "a", " \n", "1.", "x " * 9 + "\n"])
def test_fitting_takes_linear_time(fit, unit):
    def counted(times):
        lengths = []
        fit(
            [PromptBlock("<block>\n", unit * times, "</block>")],
            300,
            lambda text: lengths.append(len(text)) or len(text) // 4 + 1,
        )
        return sum(lengths)

    assert counted(40_000) < 15 * counted(4000)


def test_the_setting_reaches_the_prompts_of_the_loop_and_of_a_writer():
    model = Model()
    with MemoryIndex.create(config=IndexConfig(encoder=HashEncoder())) as index:
        index.add([Document(id=f"d{n}", chunks=[LONG[n * 9000 : n * 9000 + 9000]]) for n in range(8)])
        for config in (RecallConfig(reader="chat", max_steps=3), RecallConfig()):
            index.answer("Where is item 150?", config.replace(prompt_tokens=1500), chat=model)
    assert model.prompts and max(model.sizes) <= 1500
    with pytest.raises(ValueError, match="prompt_tokens"):
        RecallConfig(prompt_tokens=0)


def test_a_language_model_reads_the_best_blocks_where_the_gate_turns_all_down():
    model = Model()
    with MemoryIndex.create(config=IndexConfig(encoder=HashEncoder())) as index:
        index.add([Document(id=f"d{n}", text=f"Invoice {n} is due within thirty days.") for n in range(12)])
        refused = RecallConfig(threshold=1.0)
        reading = refused.replace(reader="chat")
        answer = index.answer("When must it be paid?", reading, chat=model)
        assert (answer.text, answer.usage.model_calls, len(answer.steps[0].recalls)) == ("done", len(model.prompts), 4)
        assert not index.answer("When must it be paid?", refused).found
        assert not index.answer("When?", reading, filter={"year": 1}, chat=model).found


# The model's own tokenizer


class Counting:
    """A chat model that counts its own tokens: characters."""

    def __init__(self):
        self.heard = []

    def __call__(self, messages):
        self.heard.append(messages)
        return "It is Lloyd."

    def count_tokens(self, text):
        return len(text)


def test_a_model_that_counts_its_tokens_is_believed():
    chat = Counting()
    block = MemoryBlock(chunk=Chunk(text="The mill is insured by Lloyd. " + "It rains a lot. " * 400))
    *_, usage = ChatReader(chat, prompt_tokens=3000).write("Who insures it?", WorkingMemory(blocks=(block,)))
    length = sum(len(message["content"]) for message in chat.heard[0])
    assert (usage.prompt_tokens, usage.completion_tokens) == (length, len("It is Lloyd."))
    assert 1500 < length <= 3000 and "insured by Lloyd" in chat.heard[0][1]["content"]


def test_an_endpoint_counts_by_the_tokenizer_that_is_named(tiny_tokenizer, tmp_path):
    file = tmp_path / "tokenizer.json"
    tiny_tokenizer.backend_tokenizer.save(str(file))
    url = "http://127.0.0.1:1/v1"
    assert Endpoint("m", base_url=url, tokenizer=file).count_tokens("abc é") == 6
    assert Endpoint("m", base_url=url).count_tokens is None
    file.write_text("{}")
    with pytest.raises(CompMemError, match=r"is not a readable tokenizer.json"):
        Endpoint("m", base_url=url, tokenizer=file)


@pytest.mark.parametrize(
    "url", ["", "notaurl", "localhost:11434/v1", "ftp://a/v1", "http://", "http://[", "http://a:b"]
)
def test_an_endpoint_without_an_address_is_refused(url, monkeypatch):
    with pytest.raises(ValueError, match=re.escape(f"{url!r} must begin with http:// or https:// and name a host")):
        Endpoint("m", base_url=url)
    if url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(ValueError, match="and name a host"):
            Endpoint("m")


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_line_of_an_endpoint_without_an_end_is_an_error(encoding):
    sent = []

    class Endless(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-encoding", encoding)
            self.end_headers()
            packed = zlib.compressobj(wbits=31)
            for piece in itertools.chain([b"data: "], itertools.repeat(b"a" * 65536)):
                try:
                    self.wfile.write(piece if encoding == "identity" else packed.compress(piece))
                except OSError:
                    return
                sent.append(len(piece))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        model = Endpoint("m", base_url=f"http://127.0.0.1:{server.server_port}/v1")
        with pytest.raises(ConnectionError, match="a line of more than"):
            list(model([{"role": "user", "content": "q"}]))
    finally:
        server.shutdown()
        server.server_close()
    assert sum(sent) > MAX_EVENT_BYTES
