"""The longest prompt of a chat model, and its token counter."""

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import BaseLanguageModel
from langchain_core.messages import BaseMessage, trim_messages
from langchain_core.runnables import RunnableSequence

from langchain_compmem.wrappers import innermost

PER_MESSAGE: Final = 8
"""Maximum number of tokens that a chat template adds to a message."""

Count = Callable[[str], int]
"""Counts the tokens of a text."""


class Window(NamedTuple):
    """The longest prompt of a chat model, in tokens."""

    tokens: int | None
    """None: unknown."""
    count: Count

    def newest(self, history: list[BaseMessage], frame: Callable[[], list[BaseMessage]]) -> list[BaseMessage]:
        """The end of a conversation that fits together with the frame, which is made if that is limited."""
        if self.tokens is None:
            return history
        left = self.tokens - self._count(frame())
        return trim_messages(history, max_tokens=max(left, 0), token_counter=self._count, allow_partial=True)

    def _count(self, messages: list[BaseMessage]) -> int:
        return sum(self.count(str(message.text)) + PER_MESSAGE for message in messages)


def window_of(model: object, wanted: int | None) -> Window:
    """The window: the wanted size, else the smallest in the profiles of the models.

    Tokens are counted by the model if it has a counter that works here, else by an estimate that is rather too high.
    """
    models = list(_models(model))
    known = [model.profile.get("max_input_tokens") for model in models if model.profile]
    tokens = wanted if wanted is not None else min((n for n in known if n), default=None)
    counters = [counter for counter in map(_counter, models) if counter is not None]
    if tokens is None or not counters or len(counters) < len(models):
        return Window(tokens, estimate_tokens)
    return Window(tokens, lambda text: max(count(text) for count in counters))


def estimate_tokens(text: str) -> int:
    """An estimate of a text's tokens, rather too high: 1.3 per word, or one per three bytes if that is more."""
    return int(max(1.3 * len(text.split()), len(text.encode("utf-8", "surrogatepass")) / 3)) + 1


def _models(runnable: Any) -> Iterator[BaseChatModel]:
    """The chat models inside retries, fallbacks, alternatives, bound arguments and chains."""
    for one in innermost(runnable):
        match one:
            case BaseChatModel():
                yield one
            case RunnableSequence():
                for step in one.steps:
                    yield from _models(step)


def _counter(model: BaseChatModel) -> Count | None:
    """The model's own counter; None if it has none, since the framework would download another model's tokenizer."""
    kind = type(model)
    stock = (
        kind.get_num_tokens is BaseLanguageModel.get_num_tokens
        and kind.get_token_ids is BaseLanguageModel.get_token_ids
        and model.custom_get_token_ids is None
    )
    if stock:
        return None
    try:
        model.get_num_tokens("A counter that needs the network fails here.")
    except Exception:  # any error means that the counter does not work
        return None
    return model.get_num_tokens
