"""An HTML page as text that keeps headings, lists, tables and code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from compmem.cli.text_decoding import UnreadableError
from compmem.text.line_runs import MAX_LINE_CHARS

_DROPPED: Final = frozenset(
    "head script style template noscript svg math iframe object button select dialog nav".split()
)
_DROPPED_ROLES: Final = frozenset("navigation banner contentinfo search".split())
_AROUND_MAIN: Final = frozenset({"aside", "footer"})
"""Boilerplate, unless it is inside the main content."""
_AROUND_MAIN_NAMES: Final = frozenset(
    """breadcrumb breadcrumbs catlinks cookie-banner footer mw-editsection mw-navigation nav navbar navigation noprint
    printfooter sidebar site-footer site-nav toc""".split()
)
"""Ids and classes of such boilerplate; a longer name, such as `with-sidebar`, may be that of the page."""
_PAGE: Final = frozenset({"html", "body"})
_MAIN: Final = frozenset({"main", "article"})
_BLOCKS: Final = frozenset(
    """address article aside blockquote body center details dd dir div dl dt fieldset figcaption figure footer form
    header hgroup hr html legend li main menu nav ol p pre section summary table tbody thead tfoot tr ul h1 h2 h3 h4 h5
    h6""".split()
)
_TAG_PREFIX: Final = {
    "li": "- ",
    "br": "\n",
    "pre": "```\n",
    **{f"h{level}": "#" * level + " " for level in range(1, 7)},
}
"""What is written where a tag begins."""
_SINGLE_BREAK_TAGS: Final = frozenset("li dt dd tr tbody thead tfoot".split())
_CELLS: Final = frozenset({"td", "th"})
_NOT_IN_ROWS: Final = frozenset("table tr li dt dd pre h1 h2 h3 h4 h5 h6".split())
"""A row of a table with one of these in it is written as text; a definition is not in the line of its term."""
_MAX_WRAPPED_ROW_CHARS: Final = 300
"""Maximum number of characters of a row that has several lines in a cell, or a single cell with text."""
_PERMALINK_CLASSES: Final = frozenset({"headerlink", "anchor", "permalink"})
_MAX_NESTED_TAGS: Final = 3000
"""Maximum number of nested tags: libxml2 compares each closing tag with all open ones, which takes quadratic time."""
_FEED_CHARS: Final = 1 << 16


def page_text(html: str) -> tuple[str, str]:
    """Title and text of a page: headings as `#` lines, list items as `-` lines, tables as Markdown tables.

    A term and its definition are one line, `term: definition`, if each is a line.

    A table that only arranges a page, such as one with a single cell in a row or with lists in its cells, is text.

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
    for start in range(0, len(html), _FEED_CHARS):
        parser.feed(html[start : start + _FEED_CHARS])
    parser.close()
    return page.title(), page.text()


def _is_around_main(tag: str, attributes: Mapping[str, str]) -> bool:
    names = f"{attributes.get('id', '')} {attributes.get('class', '')}".lower().split()
    return tag not in _MAIN | _PAGE and not _AROUND_MAIN_NAMES.isdisjoint(names)


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

    def title(self) -> str:
        title = "".join(self._title) if self._title else self._writer.heading
        return " ".join(title.split()).rstrip("¶ ")

    def text(self) -> str:
        return self._writer.text()

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_NESTED_TAGS:
            raise UnreadableError(f"more than {_MAX_NESTED_TAGS} nested tags")
        self._in_title = tag == "title" and not self._title and self._dropped in ("", "head")
        if self._dropped:
            return
        if self._is_dropped(tag, attributes):
            self._dropped, self._dropped_at = tag, self._depth
            return
        self._main += tag in _MAIN
        self._writer.enter(tag)

    def end(self, tag: str) -> None:
        self._in_title = False
        if not self._dropped:
            self._main -= tag in _MAIN
            self._writer.leave(tag)
        elif self._dropped_at == self._depth:
            self._dropped = ""
        self._depth -= 1

    def data(self, text: str) -> None:
        if self._in_title:
            self._title.append(text)
        elif not self._dropped:
            self._writer.write(text)

    def close(self) -> None:
        """Called by lxml at the end of the page."""

    def _is_dropped(self, tag: str, attributes: Mapping[str, str]) -> bool:
        return (
            tag in _DROPPED
            or (not self._main and (tag in _AROUND_MAIN or _is_around_main(tag, attributes)))
            or attributes.get("hidden", "until-found") != "until-found"
            or attributes.get("role") in _DROPPED_ROLES
            or "display:none" in "".join(attributes.get("style", "").lower().split())
            or not _PERMALINK_CLASSES.isdisjoint(attributes.get("class", "").split())
        )


@dataclass(slots=True)
class _Row:
    """A row of a table that is being written."""

    first: int
    """Number of its first part."""
    before: str
    """The last two characters before it."""
    cells: list[tuple[int, int]] = field(default_factory=list)
    """The numbers of the first part of each cell, and of the first one after it."""
    as_text: bool = False
    """It is written as text."""


@dataclass(slots=True)
class _Term:
    """The last term of a list of definitions, until its first definition ends."""

    lines: int
    """Line breaks before it."""
    end: int = 0
    """Index of the part after the term; 0 if the term is not closed or has several lines."""
    after: int = 0
    """Line breaks before its definition."""


class _Writer:
    """Writes text, with line breaks where blocks begin and end."""

    def __init__(self) -> None:
        self.heading = ""
        """The first heading of the highest level, on one or more lines."""
        self._heading_first = 0
        """Number of its first part."""
        self._parts: list[str] = []
        self._code = 0
        self._items = 0
        self._rows: list[_Row] = []
        self._header_written = [False]
        """For each open table, whether its first row was written; item 0 is for rows outside of tables."""
        self._last_chars = "\n\n"
        self._lines = 0
        """Line breaks so far."""
        self._term: _Term | None = None

    def enter(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._break(tight=tag in _SINGLE_BREAK_TAGS)
        self._items += tag in _SINGLE_BREAK_TAGS
        if self._rows and tag in _NOT_IN_ROWS:
            self._rows[-1].as_text = True
        if tag in _NOT_IN_ROWS and tag != "dd":
            self._term = None
        if tag == "table":
            self._header_written.append(False)
        elif tag == "tr":
            self._rows.append(_Row(len(self._parts), self._last_chars))
        elif tag in _CELLS:
            self._begin_cell()
        elif tag == "dt":
            self._term = _Term(self._lines)
        elif tag == "dd":
            self._begin_definition()
        self._code += tag == "pre"
        self._put(_TAG_PREFIX.get(tag, ""))
        if tag == "h1":
            self._heading_first = len(self._parts)

    def leave(self, tag: str) -> None:
        if tag == "pre":
            self._code -= 1
            self._put("```" if self._last_chars.startswith("\n") else "\n```")
        elif tag in _CELLS and self._rows and self._rows[-1].cells:
            self._rows[-1].cells[-1] = (self._rows[-1].cells[-1][0], len(self._parts))
        elif tag == "tr" and self._rows:
            self._write_row(self._rows.pop())
        elif tag == "table":
            self._header_written.pop()
        elif tag == "dt" and self._term:
            self._term.end = len(self._parts) - self._ends_with_break() if self._is_line(self._term.lines) else 0
        elif tag == "dd":
            self._end_definition()
        elif tag == "h1":
            self.heading = self.heading or "".join(self._parts[self._heading_first :]).strip()
        if tag in _BLOCKS:
            self._break(tight=tag in _SINGLE_BREAK_TAGS)
        self._items -= tag in _SINGLE_BREAK_TAGS

    def write(self, text: str) -> None:
        if not self._code:
            text = re.sub(r"\s+", " ", text)
            text = text.lstrip() if self._last_chars[-1:].isspace() else text
        self._put(text)

    def text(self) -> str:
        lines = "".join(self._parts).split("\n")
        return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip() + "\n"

    def _begin_cell(self) -> None:
        if not self._last_chars.endswith("\n"):
            self._put(" | ")
        if self._rows:
            self._rows[-1].cells.append((len(self._parts), len(self._parts)))

    def _write_row(self, row: _Row) -> None:
        """Writes a row as one of a Markdown table if it is one; otherwise it stays as it was written."""
        if row.as_text:
            return
        cells = ["".join(self._parts[first:last]).strip() for first, last in row.cells]
        filled = sum(map(bool, cells))
        line = " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells)
        most = MAX_LINE_CHARS - 5 if filled > 1 and "\n" not in "".join(cells) else _MAX_WRAPPED_ROW_CHARS
        if len(line) > most or filled < (1 if self._header_written[-1] else 2):
            return
        del self._parts[row.first :]
        self._last_chars = row.before
        self._put(f"| {line} |" if self._header_written[-1] else f"| {line} |\n|{' --- |' * len(cells)}")
        self._header_written[-1] = True

    def _begin_definition(self) -> None:
        """Forgets the last term if it is not one line, or not directly before the definition."""
        if self._term and self._term.end and self._parts[self._term.end :] == ["\n"]:
            self._term.after = self._lines
        else:
            self._term = None

    def _end_definition(self) -> None:
        """Puts the definition into the line of its term if it is one line, and the term asks nothing."""
        term, self._term = self._term, None
        if term and self._is_line(term.after) and len(self._parts) > term.end + 1:
            self._parts[term.end - 1] = self._parts[term.end - 1].rstrip()
            last = "".join(self._parts[max(0, term.end - 2) : term.end])[-1:]
            if last != "?":
                self._parts[term.end] = " " if last == ":" else ": "

    def _is_line(self, lines: int) -> bool:
        """Whether only one line was written since there were so many line breaks."""
        return self._lines - self._ends_with_break() == lines

    def _ends_with_break(self) -> bool:
        """Whether the last part is a line break."""
        return self._parts[-1:] == ["\n"]

    def _break(self, *, tight: bool) -> None:
        if self._code or self._last_chars in ("- ", "# "):
            return
        wanted = "\n" if tight or self._items else "\n\n"
        if not self._last_chars.endswith(wanted):
            self._put("\n" if self._last_chars.endswith("\n") else wanted)

    def _put(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self._lines += text.count("\n")
            self._last_chars = (self._last_chars + text)[-2:]
