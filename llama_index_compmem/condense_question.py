"""Makes follow-up questions standalone: with an LLM, or by a simple rule."""

from collections.abc import Sequence
from typing import Final

from llama_index.core.base.llms.generic_utils import messages_to_history_str
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate

from compmem.text.follow_up import standalone_question
from llama_index_compmem.errors import CompMemLLMError
from llama_index_compmem.llm import apredict, count_tokens, prompt_tokens

CONDENSE: Final = PromptTemplate(
    "A conversation and a message that follows it are given. Rewrite the message as one question that can be "
    "understood without the conversation: put the names in for pronouns, and change nothing else.\n\n"
    "Conversation:\n{chat_history}\n\nMessage: {question}\n\nQuestion:"
)
"""The prompt for the LLM; fields `chat_history`, `question`."""

_MAX_REWRITTEN_TOKENS: Final = 256
"""Maximum number of tokens of a rewritten message."""
_MARGIN: Final = 16
"""Maximum number of tokens that a chat template adds to a prompt."""


def condense_template(prompt: object) -> BasePromptTemplate:
    """The prompt that makes a message standalone; a text is a template.

    Raises:
        TypeError: It is neither a template nor a text.
        ValueError: It lacks `question`, or has a field that is not filled.
    """
    template = PromptTemplate(prompt) if isinstance(prompt, str) else prompt
    if not isinstance(template, BasePromptTemplate):
        raise TypeError(f"condense_prompt= must be a prompt template or a text, not {type(prompt).__name__}")
    names = {*template.template_vars} - {*template.kwargs}
    if "question" not in names or names - {"question", "chat_history"}:
        raise ValueError(f"condense_prompt must have the fields question and chat_history alone, not {sorted(names)}")
    return template


def condense_by_rule(history: Sequence[ChatMessage], message: str) -> str:
    """The message, followed by the names in the conversation that it refers to; see `standalone_question`."""
    return standalone_question([{"role": m.role.value, "content": m.content or ""} for m in history], message)


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


async def acondense(llm: LLM, prompt: BasePromptTemplate, history: Sequence[ChatMessage], message: str) -> str:
    """`condense` for an event loop."""
    conversation = _history(llm, prompt, history, message)
    if not conversation:
        return message
    try:
        reply = await apredict(llm, prompt, question=message, chat_history=conversation)
    except Exception as error:
        raise _failed(error) from error
    return _checked(reply)


def _history(llm: LLM, prompt: BasePromptTemplate, history: Sequence[ChatMessage], message: str) -> str:
    """The newest messages that fit into a prompt with the message; a single longer one is cut."""
    left = (
        prompt_tokens(llm, _MAX_REWRITTEN_TOKENS)
        - count_tokens(prompt.format(question=message, chat_history=""))
        - _MARGIN
    )
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
