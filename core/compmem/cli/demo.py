"""`compmem demo`: the documentation of the Python standard library, and questions that need two places of it each."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

import compmem
from compmem.cli import show
from compmem.cli.app import app, out, write_json
from compmem.cli.asking import AsJson, Device, follow, last
from compmem.cli.demo_docs import MODULES, documents
from compmem.cli.keeping import opened, progress
from compmem.schema import Answer
from compmem.trace import as_page


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question whose answer is in one place that only another place names."""

    text: str
    expected: tuple[str, ...]
    """Each would be right; compared without case and line breaks."""
    first: tuple[str, str]
    """Module and words of the place that the question names."""
    second: tuple[str, str]
    """Module and words of the place that answers."""

    def right(self, answer: str) -> bool:
        """Whether an answer holds what is expected."""
        said = " ".join(answer.split()).lower()
        return any(expected.lower() in said for expected in self.expected)


QUESTIONS: Final = (
    Question(
        text="Which thread must release the kind of lock that threading.Condition creates when no lock is given?",
        expected=("by the thread that acquired it",),
        first=("threading", "Otherwise, a new RLock object is created and used as the underlying lock."),
        second=("threading", "A reentrant lock must be released by the thread that acquired it."),
    ),
    Question(
        text="When several headers match a name, how does getheader combine their values in the object that "
        "urllib.request.urlopen returns for HTTP URLs?",
        expected=("separated by commas and spaces",),
        first=("urllib.request", "For HTTP and HTTPS URLs, this function returns a http.client.HTTPResponse object"),
        second=("http.client", "combined into a single string separated by commas and spaces."),
    ),
    Question(
        text="How is metadata copied by the function that shutil.copytree uses by default to copy each file?",
        expected=("copied with copystat()",),
        first=("shutil", "By default, copy2() is used, but any function that supports the same signature"),
        second=("shutil", "Metadata is copied with copystat()."),
    ),
    Question(
        text="What is the result of a call of the mock that unittest.mock.patch puts in place of an async function?",
        expected=("the result of a call is an awaitable",),
        first=("unittest.mock", "AsyncMock if the patched object is an async function"),
        second=("unittest.mock", "recognized as an async function, and the result of a call is an awaitable"),
    ),
    Question(
        text="What does the class deal with on which code.InteractiveConsole builds?",
        expected=("deals with parsing and interpreter state",),
        first=("code", "This class builds on InteractiveInterpreter and adds prompting"),
        second=("code", "This class deals with parsing and interpreter state (the user's namespace)"),
    ),
    Question(
        text="For what is the framework often useful on whose class the debugger pdb.Pdb is based?",
        expected=("test harnesses, administrative tools",),
        first=("pdb", "class Pdb(bdb.Bdb, cmd.Cmd)"),
        second=("cmd", "These are often useful for test harnesses, administrative tools, and prototypes"),
    ),
    Question(
        text="Which exception is raised when bom and cookie disagree, by the function with which tokenize.open detects "
        "the encoding of a file?",
        expected=("a SyntaxError will be raised",),
        first=("tokenize", "Open a file in read only mode using the encoding detected by detect_encoding()."),
        second=("tokenize", "If both a bom and a cookie are present, but disagree, a SyntaxError will be raised."),
    ),
    Question(
        text="In which wildcards does glob.glob believe, and what does [!seq] match in them?",
        expected=("matches any char not in seq",),
        first=("glob", "simple shell-style wildcards a la fnmatch."),
        second=("fnmatch", "[!seq] matches any char not in seq"),
    ),
    Question(
        text="By which calls is the exception raised that queue.Queue.get_nowait raises if no item is available?",
        expected=("Exception raised by Queue.get(block=0)/get_nowait()",),
        first=("queue", "Only get an item if one is immediately available. Otherwise raise the Empty exception."),
        second=("queue", "Exception raised by Queue.get(block=0)/get_nowait()."),
    ),
    Question(
        text="When a logging.handlers.MemoryHandler is full, where does it flush to?",
        expected=("target",),
        first=("logging.handlers", "A handler class which buffers logging records in memory"),
        second=("logging.handlers", "flushing"),
    ),
)


def add_documents(index: "compmem.MemoryIndex") -> int:
    """Puts the documentation into an index, with a bar; returns how many documents were new or changed."""
    with progress() as bar:
        return index.add(bar.track(documents(), total=len(MODULES), description="compressing"))


@app.command()
def demo(
    index: Annotated[
        Path | None, typer.Option("--index", metavar="FOLDER", help="Keep the index there. Default: a temporary one.")
    ] = None,
    pages: Annotated[
        Path | None, typer.Option("--pages", metavar="FOLDER", help="Write each answer as an HTML page there.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Compress the documentation of the standard library and answer questions that need two places of it each."""
    started = time.perf_counter()
    console = out()
    with opened(index, {}, device) as memory:
        added = add_documents(memory)
        facts = memory.info()
        ready = time.perf_counter() - started
        if not as_json:
            console.print(
                f"{facts.documents} modules, {facts.characters:,} characters, {facts.blocks:,} blocks; "
                f"{added} documents compressed in {ready:.1f} s\n"
            )
        answers = [_answered(console, memory, number, as_json) for number in range(len(QUESTIONS))]
    right = [q.right(a.text) for q, a in zip(QUESTIONS, answers, strict=True)]
    seconds = time.perf_counter() - started
    if pages is not None:
        pages.mkdir(parents=True, exist_ok=True)
        for number, answer in enumerate(answers, start=1):
            (pages / f"{number}.html").write_text(as_page(answer), encoding="utf-8")
    if as_json:
        write_json({
            "modules": facts.documents, "characters": facts.characters, "blocks": facts.blocks,
            "questions": [{**show.answer_json(a), "right": r} for a, r in zip(answers, right, strict=True)],
            "right": sum(right), "seconds_to_compress": ready, "seconds": seconds,
        })  # fmt: skip
    else:
        console.print(f"{sum(right)} of {len(right)} right, {seconds:.1f} s in all")


def _answered(console: Console, memory: "compmem.MemoryIndex", number: int, as_json: bool) -> Answer:
    question = QUESTIONS[number]
    events = memory.stream(question.text)
    if as_json:
        return last(events)
    console.print(Rule(Text(f"question {number + 1}"), align="left", style="cyan"))
    console.print(Text(question.text, style="bold"))
    answer = follow(console, events, trace=True)
    verdict = Text("right", style="green") if question.right(answer.text) else Text("not found", style="red")
    console.print(verdict + Text(f" (expected: {' or '.join(question.expected)})\n", style="dim"))
    return answer
