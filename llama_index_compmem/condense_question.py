"""Makes follow-up questions standalone: with an LLM, or by a simple rule."""

import re
from collections.abc import Sequence
from typing import Final

from llama_index.core.base.llms.generic_utils import messages_to_history_str
from llama_index.core.llms import LLM, ChatMessage, MessageRole
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate

from llama_index_compmem.errors import CompMemLLMError
from llama_index_compmem.llm import count_tokens, prompt_tokens

CONDENSE: Final = PromptTemplate(
    "A conversation and a message that follows it are given. Rewrite the message as one question that can be "
    "understood without the conversation: put the names in for pronouns, and change nothing else.\n\n"
    "Conversation:\n{chat_history}\n\nMessage: {question}\n\nQuestion:"
)
"""The prompt for the LLM; fields `chat_history`, `question`."""

_REFERS: Final = frozenset(
    # English, German, French, Spanish; words that often have another meaning (`es`, `le`, `la`) are left out.
    """he she it they him her them his hers its their theirs this that these those there then one ones same
    er sie ihn ihm ihr ihnen sein seine seiner seinem seinen ihre ihrer ihrem ihren dieser diese dieses diesem diesen
    dort dessen deren damals dabei davon daran
    il elle ils elles lui leur leurs ce cette ces cela celui celle ceux celles
    él ella ellos ellas su sus este esta estos estas ese esa esos esas eso esto allí""".split()
)
_ARTICLES: Final = frozenset("the a an der die das ein eine le la les un une el los las una i".split())
_SHORT: Final = 3
_REWRITTEN: Final = 256
"""Most tokens of a rewritten message."""
_MARGIN: Final = 16
"""Most tokens that a chat template adds to a prompt."""
_NAMES: Final = 3


def condense_by_rule(history: Sequence[ChatMessage], message: str) -> str:
    """The message, followed by the names that it refers to, if it refers to any.

    It does if it contains a pronoun or a similar word, or has at most three words. It then refers to the names that
    were new in the last answer, else to all names in it, else to the whole last question.
    """
    words = re.findall(r"[^\W\d_]+", message.lower())
    if not history or (len(words) > _SHORT and not _REFERS.intersection(words)):
        return message
    *before, last = [m.content or "" for m in history]
    earlier = {name for text in before for name in _names(text)}
    meant = [name for name in _names(last) if name not in earlier] or _names(last)
    if meant:
        return f"{message} ({'; '.join(meant[:_NAMES])})"
    asked = next((m.content for m in reversed(history) if m.role == MessageRole.USER and m.content), "")
    return f"{asked} {message}".strip()


def _names(text: str) -> list[str]:
    """Runs of capitalised words, each once, without articles and pronouns."""
    found: dict[str, None] = {}
    for run in re.findall(r"[^\W\d_]\w*(?:[ '’-][^\W\d_]\w*)*", text):
        words: list[str] = []
        for word in [*run.split(" "), ""]:
            if word[:1].isupper() and word.lower() not in _ARTICLES | _REFERS:
                words.append(word)
            elif words:
                found[" ".join(words)] = None
                words = []
    return list(found)


def condense(llm: LLM, prompt: BasePromptTemplate, history: Sequence[ChatMessage], message: str) -> str:
    """The message rewritten by the LLM, with as many of the newest messages as fit into its context window.

    Raises:
        CompMemLLMError: The LLM failed or returned nothing.
    """
    conversation = _history(llm, prompt, history, message)
    if not conversation:
        return message
    try:
        reply = llm.predict(prompt, question=message, chat_history=conversation)
    except Exception as error:
        raise _failed(error) from error
    return _checked(reply)


async def astandalone(llm: LLM, prompt: BasePromptTemplate, history: Sequence[ChatMessage], message: str) -> str:
    """`condense` for an event loop."""
    conversation = _history(llm, prompt, history, message)
    if not conversation:
        return message
    try:
        reply = await llm.apredict(prompt, question=message, chat_history=conversation)
    except Exception as error:
        raise _failed(error) from error
    return _checked(reply)


def _history(llm: LLM, prompt: BasePromptTemplate, history: Sequence[ChatMessage], message: str) -> str:
    """The newest messages that fit into a prompt with the message; a single longer one is cut."""
    left = prompt_tokens(llm, _REWRITTEN) - count_tokens(prompt.format(question=message, chat_history="")) - _MARGIN
    kept: list[ChatMessage] = []
    for item in reversed(history):
        tokens = count_tokens(messages_to_history_str([item])) + 1
        if tokens > left:
            if not kept:
                kept = [ChatMessage(role=item.role, content=_cut(item.content or "", left - _MARGIN))]
            break
        kept.insert(0, item)
        left -= tokens
    return messages_to_history_str([m for m in kept if m.content]) or ""


def _cut(text: str, limit: int) -> str:
    """The beginning of a text, of at most about this many tokens."""
    while text and (tokens := count_tokens(text)) > limit:
        text = text[: int(len(text) * 0.95 * max(limit, 0) / tokens)]
    return text


def _failed(error: Exception) -> CompMemLLMError:
    return CompMemLLMError(f"the LLM failed to make the message standalone: {type(error).__name__}: {error}")


def _checked(reply: object) -> str:
    if not isinstance(reply, str) or not reply.strip():
        raise CompMemLLMError("the LLM gave nothing when asked to make the message standalone")
    return reply.strip()
