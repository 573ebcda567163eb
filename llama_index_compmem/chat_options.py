"""Options of chat engines, under the names that LlamaIndex's own engines have for them."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llama_index.core.prompts import PromptTemplate

import compmem


def split_options(options: Mapping[str, Any], *names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options with these names, and the others."""
    chosen = {name: value for name, value in options.items() if name in names}
    return chosen, {name: value for name, value in options.items() if name not in names}


def chat_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a `CompMemChatEngine`, and those of its query engine.

    Raises:
        TypeError: An option is given under two names.
    """
    given, rest = split_options(options, "memory", "chat_history", "condense_prompt")
    if (prompt := rest.pop("condense_question_prompt", None)) is not None:
        if given.get("condense_prompt") is not None:
            raise TypeError("give condense_prompt= or condense_question_prompt=, not both")
        given["condense_prompt"] = prompt
    if (system := rest.pop("system_prompt", None)) is not None:
        rest["prompts"] = {"system": _system_template(system), **(rest.get("prompts") or {})}
    return {name: value for name, value in given.items() if value is not None}, rest


def check_options(options: Iterable[str], make: Callable[..., object], engine: str) -> None:
    """Refuse an option that an engine does not have: the framework's own engines pass over a misspelt filter.

    Args:
        options: Names of the given options.
        make: What makes the engine; its named parameters are the options that it has.
        engine: The engine, for the message.

    Raises:
        TypeError: It is unknown.
    """
    known = {p.name for p in inspect.signature(make).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    if others := [name for name in options if name not in known and name != "verbose"]:  # an engine may print nothing
        raise TypeError(f"{others[0]}= is no option of {engine}")


def _system_template(system: object) -> PromptTemplate:
    if not isinstance(system, str):
        raise TypeError(f"system_prompt= must be a text, not {type(system).__name__}")
    return PromptTemplate(f"{compmem.ChatPrompts().system}\n\n{system}")
