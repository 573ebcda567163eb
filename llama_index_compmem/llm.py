"""An LLM of LlamaIndex as a chat model of the core, and its prompt templates as prompts of the core."""

import string
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llama_index.core.llms import LLM, ChatMessage, CustomLLM
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate
from llama_index.core.utils import get_tokenizer

from compmem.threads import in_chat_thread

if TYPE_CHECKING:
    from compmem import ChatPrompts

Messages = Sequence[Mapping[str, str]]
ChatModel = Callable[[Messages], Any]


def sync_chat(llm: LLM, *, streaming: bool) -> ChatModel:
    """The LLM as a callable `messages -> text`, or `messages -> pieces of text`."""

    def whole(messages: Messages) -> str:
        return llm.chat(_messages(messages)).message.content or ""

    def pieces(messages: Messages) -> Iterator[str]:
        for reply in llm.stream_chat(_messages(messages)):
            yield reply.delta or ""

    return pieces if streaming else whole


def async_chat(llm: LLM, *, streaming: bool) -> ChatModel:
    """The same for an event loop.

    An LLM with the async methods of `CustomLLM` would block the loop, since these call its sync methods; the core runs
    a sync callable in a thread instead.
    """
    if _is_blocking(llm, "astream_chat" if streaming else "achat"):
        return sync_chat(llm, streaming=streaming)

    async def whole(messages: Messages) -> str:
        return (await llm.achat(_messages(messages))).message.content or ""

    async def pieces(messages: Messages) -> AsyncIterator[str]:
        async for reply in await llm.astream_chat(_messages(messages)):
            yield reply.delta or ""

    return pieces if streaming else whole


async def apredict(llm: LLM, prompt: BasePromptTemplate, **fields: str) -> str:
    """The reply to a prompt without blocking the event loop; a thread with a sync method is abandoned if cancelled."""
    if not _is_blocking(llm, "achat" if llm.metadata.is_chat_model else "acomplete"):
        return await llm.apredict(prompt, **fields)
    return await in_chat_thread(copy_context().run, partial(llm.predict, prompt, **fields))


def _is_blocking(llm: LLM, method: str) -> bool:
    """Whether an async method is that of `CustomLLM`, which calls a sync method.

    Wrappers of the framework make a new object at each access, so the methods themselves cannot be compared.
    """
    return next((kind for kind in type(llm).__mro__ if method in vars(kind)), None) is CustomLLM


def count_tokens(text: str) -> int:
    """Tokens of a text by the framework's tokenizer, from `Settings` if it is set there."""
    return len(get_tokenizer()(text))


def prompt_tokens(llm: LLM, reply: int) -> int:
    """Maximum number of tokens of a prompt to the LLM: its context window less its output, or less this reply."""
    window = llm.metadata.context_window
    return max(window - max(llm.metadata.num_output, min(reply, window // 4)), window // 2, 1)


def to_templates(prompts: "ChatPrompts") -> dict[str, BasePromptTemplate]:
    """The core's prompts as templates of the framework, by name."""
    return {field.name: PromptTemplate(_as_seen(getattr(prompts, field.name))) for field in fields(prompts)}


def with_templates(prompts: "ChatPrompts", changed: Mapping[str, BasePromptTemplate]) -> "ChatPrompts":
    """The prompts with some replaced by templates of the framework.

    Raises:
        ValueError: A name is unknown, a template has several messages, or it lacks a required field or has a field of
            another prompt.
    """
    names = [field.name for field in fields(prompts)]
    if unknown := sorted(set(changed) - set(names)):
        raise ValueError(f"unknown prompt {unknown[0]!r}; there are {names}")
    return replace(prompts, **{name: _template_text(template) for name, template in changed.items()})


def _messages(messages: Messages) -> list[ChatMessage]:
    return [ChatMessage(role=m["role"], content=m["content"]) for m in messages]


_FIELDS = ("question", "memory", "blocks")


def _as_seen(text: str) -> str:
    """A text for `str.format` with its doubled braces single, as in templates of the framework."""
    parts = string.Formatter().parse(text)
    return "".join(literal + ("" if field is None else f"{{{field}}}") for literal, field, _, _ in parts)


def _template_text(template: BasePromptTemplate) -> str:
    """The text of a template with its mappings and fixed values filled in, for `str.format`.

    Its fields are first filled with marks. All other braces are then literal, as in the framework.
    """
    if not isinstance(template, BasePromptTemplate):
        raise ValueError(f"a prompt must be a PromptTemplate, not {template!r}")
    if isinstance(template, ChatPromptTemplate) or getattr(template, "is_chat_template", False):
        raise ValueError(
            "a prompt is the text of one message, not a chat: give its system message as the prompt 'system', and the "
            "user's as 'from_blocks' or another one, each as a PromptTemplate"
        )
    marks: dict[str, Any] = {name: f"\x00{name}\x00" for name in _FIELDS}
    text = template.format(**marks).replace("{", "{{").replace("}", "}}")
    for name, mark in marks.items():
        text = text.replace(mark, f"{{{name}}}")
    return text
