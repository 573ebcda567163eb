"""An HTML page as text whose headings, lists, tables and code can still be told apart."""

import re
import warnings
from typing import Final

try:
    import bs4
    from bs4 import element
except ImportError as error:
    raise ImportError('reading HTML needs Beautiful Soup: pip install "compmem[formats]"') from error

_DROPPED: Final = frozenset("head script style template noscript svg math iframe object button select dialog".split())
_BLOCKS: Final = frozenset(
    """address article aside blockquote body details dd div dl dt fieldset figcaption figure footer form header hr html
    li main nav ol p pre section summary table tbody thead tfoot tr ul h1 h2 h3 h4 h5 h6""".split()
)
_HEADING = re.compile(r"h([1-6])$")
_TIGHT: Final = frozenset("li dt dd tr tbody thead tfoot".split())
_PILCROW: Final = frozenset({"headerlink", "anchor", "permalink"})


def page_text(data: bytes) -> tuple[str, str]:
    """Title and text of a page: headings as `#` lines, list items as `-` lines, table rows with ` | ` between cells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bs4.XMLParsedAsHTMLWarning)
        warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
        soup = bs4.BeautifulSoup(data, "html.parser")
    named = soup.title or soup.find("h1")
    title = " ".join(named.get_text().split()).rstrip("¶ ") if named else ""
    return title, _text(soup)


def _text(root: element.Tag) -> str:
    """The text below a tag; walked without recursion, for pages nest as deep as they like."""
    writer = _Writer()
    stack: list[tuple[element.PageElement, bool]] = [(root, False)]
    while stack:
        node, left = stack.pop()
        if isinstance(node, element.Tag):
            if left:
                writer.leave(node.name)
            elif not (node.name in _DROPPED or _PILCROW.intersection(node.get_attribute_list("class"))):
                writer.enter(node.name)
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(node.contents))
        elif isinstance(node, element.NavigableString) and not isinstance(node, element.PreformattedString):
            writer.write(str(node))
    return writer.text()


class _Writer:
    """Puts text together, with breaks where blocks begin and end."""

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
