"""Runnables inside those that add a config, retries, fallbacks or configurable fields."""

from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.runnables import RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import RunnableConfigurableFields

_WRAPPERS = (RunnableBindingBase, RunnableConfigurableFields, RunnableWithFallbacks)


def layers(runnable: Any) -> Iterator[Any]:
    """The runnable, what it wraps, and so on; fallbacks behind what they stand for."""
    yield runnable
    match runnable:
        case RunnableBindingBase():
            yield from layers(runnable.bound)
        case RunnableConfigurableFields():
            yield from layers(runnable.default)
        case RunnableWithFallbacks():
            for one in runnable.runnables:
                yield from layers(one)


def innermost(runnable: Any) -> list[Any]:
    """The runnables inside that wrap no other one."""
    return [one for one in layers(runnable) if not isinstance(one, _WRAPPERS)]


def with_changed(runnable: Any, change: Callable[[Any], Any]) -> Any:
    """A copy in which each of the innermost runnables is changed."""
    match runnable:
        case RunnableBindingBase():
            return runnable.model_copy(update={"bound": with_changed(runnable.bound, change)})
        case RunnableConfigurableFields():
            return runnable.model_copy(update={"default": with_changed(runnable.default, change)})
        case RunnableWithFallbacks():
            first, *fallbacks = [with_changed(one, change) for one in runnable.runnables]
            return runnable.model_copy(update={"runnable": first, "fallbacks": fallbacks})
    return change(runnable)
