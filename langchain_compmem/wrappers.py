"""Runnables inside those that add a config, retries, fallbacks, configurable fields or alternatives."""

from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable, RunnableConfigurableAlternatives

_WRAPPERS = (RunnableBindingBase, DynamicRunnable, RunnableWithFallbacks)


def layers(runnable: Any) -> Iterator[Any]:
    """The runnable, what it wraps, and so on; fallbacks and alternatives behind what they stand for."""
    yield runnable
    for one in _wrapped(runnable):
        yield from layers(one)


def innermost(runnable: Any) -> list[Any]:
    """The runnables inside that wrap no other one; not those that a function makes when they are chosen."""
    return [one for one in layers(runnable) if not isinstance(one, _WRAPPERS)]


def with_changed(runnable: Any, change: Callable[[Any], Any]) -> Any:
    """A copy in which each of the innermost runnables is changed."""
    match runnable:
        case RunnableBindingBase():
            return runnable.model_copy(update={"bound": with_changed(runnable.bound, change)})
        case RunnableConfigurableAlternatives():
            others = {key: _alternative(one, change) for key, one in runnable.alternatives.items()}
            return runnable.model_copy(
                update={"default": with_changed(runnable.default, change), "alternatives": others}
            )
        case DynamicRunnable():
            return runnable.model_copy(update={"default": with_changed(runnable.default, change)})
        case RunnableWithFallbacks():
            first, *fallbacks = [with_changed(one, change) for one in runnable.runnables]
            return runnable.model_copy(update={"runnable": first, "fallbacks": fallbacks})
    return change(runnable)


def _wrapped(runnable: Any) -> list[Any]:
    """What a runnable wraps directly."""
    match runnable:
        case RunnableBindingBase():
            return [runnable.bound]
        case RunnableConfigurableAlternatives():
            others = runnable.alternatives.values()
            return [runnable.default, *(one for one in others if isinstance(one, Runnable))]
        case DynamicRunnable():
            return [runnable.default]
        case RunnableWithFallbacks():
            return list(runnable.runnables)
    return []


def _alternative(one: Any, change: Callable[[Any], Any]) -> Any:
    """An alternative, or the function that makes it when it is chosen, with its innermost runnables changed."""
    return with_changed(one, change) if isinstance(one, Runnable) else lambda: with_changed(one(), change)
