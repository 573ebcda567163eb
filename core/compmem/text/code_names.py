"""The words that names in code consist of, so that a search finds `max_retry_count` and `getUserName` by them."""

import re
from typing import Final

_SNAKE: Final = r"_*+[A-Za-z0-9]++(?:_++[A-Za-z0-9]++)++_*+"
_CAMEL: Final = r"[a-z][a-z0-9]++(?:[A-Z]++[a-z0-9]*+)++|[A-Z][a-z0-9]++(?:[A-Z]++[a-z0-9]*+){2,}+"
_CODE_NAME: Final = re.compile(rf"(?<!\w)(?:{_SNAKE}|{_CAMEL})(?!\w)")
_PART_BORDER: Final = re.compile(r"_+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def spell_code_names(text: str) -> str:
    """The text with the parts of each name in code behind it: "max_retry_count max retry count".

    Names of two parts that both begin with a capital are left: most are of people and firms, such as McDonald.
    """
    return _CODE_NAME.sub(_followed_by_parts, text)


def _followed_by_parts(found: re.Match[str]) -> str:
    return " ".join((found[0], *_PART_BORDER.sub(" ", found[0]).split(), ""))
