"""An LLM of LlamaIndex as a chat model of the core, and its prompt templates as prompts of the core."""

import logging
import string
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import fields, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from llama_index.core import Settings
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import LLM, ChatMessage, CustomLLM, LLMMetadata
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate
from llama_index.core.utils import get_tokenizer

from compmem.threads import in_chat_thread

if TYPE_CHECKING:
    from compmem import ChatPrompts

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, str]]
ChatModel = Callable[[Messages], Any]


def sync_chat(llm: LLM, *, streaming: bool) -> ChatModel:
    """The LLM as a callable `messages -> text`, or `messages -> pieces of text`.

    It is called as `LLM.predict` of the framework does, with the system prompt and the query wrapper of its own.
    """
    chats = llm.metadata.is_chat_model

    def whole(messages: Messages) -> str:
        if chats:
            return llm.chat(_messages(llm, messages)).message.content or ""
        return llm.complete(_prompt(llm, messages), formatted=True).text

    def pieces(messages: Messages) -> Iterator[str]:
        for reply in (
            llm.stream_chat(_messages(llm, messages))
            if chats
            else llm.stream_complete(_prompt(llm, messages), formatted=True)
        ):
            yield reply.delta or ""

    return pieces if streaming else whole


def async_chat(llm: LLM, *, streaming: bool) -> ChatModel:
    """The same for an event loop.

    An LLM with the async methods of `CustomLLM` would block the loop, since these call its sync methods; the core runs
    a sync callable in a thread instead.
    """
    chats = llm.metadata.is_chat_model
    if _is_blocking(llm, ("astream_" if streaming else "a") + ("chat" if chats else "complete")):
        return sync_chat(llm, streaming=streaming)

    async def whole(messages: Messages) -> str:
        if chats:
            return (await llm.achat(_messages(llm, messages))).message.content or ""
        return (await llm.acomplete(_prompt(llm, messages), formatted=True)).text

    async def pieces(messages: Messages) -> AsyncIterator[str]:
        async for reply in (
            await llm.astream_chat(_messages(llm, messages))
            if chats
            else await llm.astream_complete(_prompt(llm, messages), formatted=True)
        ):
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


def prompt_tokens(llm: LLM, reply: int, limit: int | None = None) -> int:
    """Maximum number of tokens of a prompt to the LLM, without what the LLM itself adds to each.

    It is `limit`, or the context window less the LLM's output or less this reply. Both are also those of
    `Settings.prompt_helper`, if it is set: the smaller window and the larger output.
    """
    if limit is None:
        known: list[LLMMetadata | PromptHelper] = [llm.metadata]
        if Settings._prompt_helper is not None:
            known.append(Settings._prompt_helper)
        window = min(each.context_window for each in known)
        output = max(each.num_output for each in known)
        limit = max(window - max(output, min(reply, window // 4)), window // 2)
    added = (llm.system_prompt or "") if llm.metadata.is_chat_model else llm._extend_prompt("")
    return max(limit - count_tokens(added), 1)


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


@cache
def tell_of_unused_llm() -> None:
    """Logs, once in a process, that the LLM in `Settings` is not called."""
    logger.warning("the LLM in Settings is not called, answers are quoted: pass llm=Settings.llm to have it write them")


def _messages(llm: LLM, messages: Messages) -> list[ChatMessage]:
    return llm._extend_messages(_as_given(messages))


def _prompt(llm: LLM, messages: Messages) -> str:
    assert llm.messages_to_prompt is not None
    return llm._extend_prompt(llm.messages_to_prompt(_as_given(messages)))


def _as_given(messages: Messages) -> list[ChatMessage]:
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
        raise ValueError(f"a prompt must be a PromptTemplate, not {type(template).__name__}")
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
