"""An HTML page as text that keeps headings, lists, tables and code."""

import re
from collections.abc import Mapping
from typing import Final

from compmem.cli.decoding import UnreadableError

_DROPPED: Final = frozenset(
    "head script style template noscript svg math iframe object button select dialog nav".split()
)
_DROPPED_ROLES: Final = frozenset("navigation banner contentinfo search".split())
_AROUND_MAIN: Final = frozenset({"aside", "footer"})
"""Boilerplate, unless it is inside the main content."""
_MAIN: Final = frozenset({"main", "article"})
_BLOCKS: Final = frozenset(
    """address article aside blockquote body details dd div dl dt fieldset figcaption figure footer form header hr html
    li main nav ol p pre section summary table tbody thead tfoot tr ul h1 h2 h3 h4 h5 h6""".split()
)
_HEADING = re.compile(r"h([1-6])$")
_TIGHT: Final = frozenset("li dt dd tr tbody thead tfoot".split())
_PILCROW: Final = frozenset({"headerlink", "anchor", "permalink"})
_DEEPEST: Final = 3000
"""Most nested tags: libxml2 compares each closing tag with all open ones, in quadratic time without a limit."""
_PIECE: Final = 1 << 16


def page_text(html: str) -> tuple[str, str]:
    """Title and text of a page: headings as `#` lines, list items as `-` lines, table rows with ` | ` between cells.

    What a browser does not show (`hidden`, `display: none`, scripts) and site navigation (navigation, search, footers
    and asides outside the content) is left out.

    Raises:
        UnreadableError: The tags are nested more deeply than in any real page.
        ImportError: lxml is missing.
    """
    try:
        from lxml.etree import HTMLParser
    except ImportError as error:
        raise ImportError('reading HTML needs lxml: pip install "compmem[formats]"') from error

    page = _Page()
    parser = HTMLParser(target=page)
    for start in range(0, len(html), _PIECE):
        parser.feed(html[start : start + _PIECE])
    parser.close()
    return page.title(), page.text()


class _Page:
    """Title and text of a page, from lxml's events for each tag. No tree is built: time and memory are linear."""

    def __init__(self) -> None:
        self._writer = _Writer()
        self._depth = 0
        self._main = 0
        self._dropped_at = 0
        self._dropped = ""
        self._in_title = False
        self._title: list[str] = []
        self._in_h1 = False
        self._h1: list[str] = []

    def title(self) -> str:
        return " ".join("".join(self._title or self._h1).split()).rstrip("¶ ")

    def text(self) -> str:
        return self._writer.text()

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UnreadableError(f"more than {_DEEPEST} nested tags")
        self._in_title = tag == "title" and not self._title and self._dropped in ("", "head")
        if self._dropped:
            return
        if self._is_dropped(tag, attributes):
            self._dropped, self._dropped_at = tag, self._depth
            return
        self._main += tag in _MAIN
        self._in_h1 = self._in_h1 or (tag == "h1" and not self._h1)
        self._writer.enter(tag)

    def end(self, tag: str) -> None:
        self._in_title = False
        if not self._dropped:
            self._main -= tag in _MAIN
            self._in_h1 = self._in_h1 and tag != "h1"
            self._writer.leave(tag)
        elif self._dropped_at == self._depth:
            self._dropped = ""
        self._depth -= 1

    def data(self, text: str) -> None:
        if self._in_title:
            self._title.append(text)
        elif not self._dropped:
            if self._in_h1:
                self._h1.append(text)
            self._writer.write(text)

    def close(self) -> None:
        """Called by lxml at the end of the page."""

    def _is_dropped(self, tag: str, attributes: Mapping[str, str]) -> bool:
        return (
            tag in _DROPPED
            or (tag in _AROUND_MAIN and not self._main)
            or attributes.get("hidden", "until-found") != "until-found"
            or attributes.get("role") in _DROPPED_ROLES
            or "display:none" in "".join(attributes.get("style", "").lower().split())
            or not _PILCROW.isdisjoint(attributes.get("class", "").split())
        )


class _Writer:
    """Writes text, with line breaks where blocks begin and end."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._code = 0
        self._items = 0
        self._ends = "\n\n"

    def enter(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._break(tight=tag in _TIGHT)
        self._items += tag in _TIGHT
        if heading := _HEADING.match(tag):
            self._put("#" * int(heading[1]) + " ")
        elif tag == "li":
            self._put("- ")
        elif tag == "br":
            self._put("\n")
        elif tag in ("td", "th") and not self._ends.endswith("\n"):
            self._put(" | ")
        elif tag == "pre":
            self._code += 1
            self._put("```\n")

    def leave(self, tag: str) -> None:
        if tag == "pre":
            self._code -= 1
            self._put("```" if self._ends.startswith("\n") else "\n```")
        if tag in _BLOCKS:
            self._break(tight=tag in _TIGHT)
        self._items -= tag in _TIGHT

    def write(self, text: str) -> None:
        if not self._code:
            text = re.sub(r"\s+", " ", text)
            text = text.lstrip() if self._ends[-1:].isspace() else text
        self._put(text)

    def text(self) -> str:
        lines = "".join(self._parts).split("\n")
        return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip() + "\n"

    def _break(self, *, tight: bool) -> None:
        if self._code or self._ends in ("- ", "# "):
            return
        wanted = "\n" if tight or self._items else "\n\n"
        if not self._ends.endswith(wanted):
            self._put("\n" if self._ends.endswith("\n") else wanted)

    def _put(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self._ends = (self._ends + text)[-2:]
