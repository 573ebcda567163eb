"""Metadata filters of LlamaIndex as filters of CompMem."""

from collections.abc import Callable
from typing import Any, Final

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from llama_index_compmem.nodes import REF_DOC_KEY

_DIRECT: Final = {
    FilterOperator.EQ: "==",
    FilterOperator.NE: "!=",
    FilterOperator.GT: ">",
    FilterOperator.GTE: ">=",
    FilterOperator.LT: "<",
    FilterOperator.LTE: "<=",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "not in",
    FilterOperator.CONTAINS: "contains",
    FilterOperator.TEXT_MATCH: "contains",
    FilterOperator.TEXT_MATCH_INSENSITIVE: "text match",
}
_OF_STRINGS: Final = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)
_OF_MISSING: Final = (FilterOperator.NE, FilterOperator.NIN, FilterOperator.IS_EMPTY)
_OF_LISTS: Final = {FilterOperator.ANY: "or", FilterOperator.ALL: "and"}


_SOURCE_ID: Final = ("doc_id", "ref_doc_id", "document_id")
"""Keys under which the framework's stores keep the id of a node's source document."""


def to_filter(filters: MetadataFilters | MetadataFilter | None) -> dict[str, Any] | None:
    """The CompMem filter that is equivalent to `filters`; None if there are none.

    As in the framework's own stores, a missing key matches only `!=` and `nin`, `any` and `all` look for members of a
    list or parts of a string, and `not` admits nodes that none of its filters admits. `doc_id`, `ref_doc_id` and
    `document_id` are the id of the node's source document, or of the node itself if it has none; the first two are the
    user's own values where a node's metadata has such a key. `title` is the node's title if its metadata has no such
    key.

    Raises:
        TypeError: It is something else.
        ValueError: An operator or condition is unknown, or a value does not fit its operator.
    """
    if filters is None:
        return None
    if isinstance(filters, MetadataFilter):
        return _single(filters)
    if not isinstance(filters, MetadataFilters):
        raise TypeError(f"filters= must be MetadataFilters or a MetadataFilter, not {type(filters).__name__}")
    return _group(filters) if filters.filters else None


def _group(filters: MetadataFilters) -> dict[str, Any]:
    parts = [_group(f) if isinstance(f, MetadataFilters) else _single(f) for f in filters.filters]
    if not parts:
        raise ValueError("a group of filters within another one is empty: it would admit every node")
    condition = filters.condition or FilterCondition.AND
    if condition not in _CONDITIONS:
        raise ValueError(f"unknown filter condition {condition!r}; there are {[c.value for c in _CONDITIONS]}")
    return _CONDITIONS[condition](parts)


_CONDITIONS: Final[dict[FilterCondition, Callable[[list[Any]], dict[str, Any]]]] = {
    FilterCondition.AND: lambda parts: {"and": parts},
    FilterCondition.OR: lambda parts: {"or": parts},
    FilterCondition.NOT: lambda parts: {"not": {"or": parts}},
}


def _single(wanted: MetadataFilter) -> dict[str, Any]:
    def test(key: str) -> dict[str, Any]:
        return _test(key, wanted.operator, wanted.value)

    if wanted.key == "title":  # a missing one is an empty text in the core
        admits = wanted.operator in _OF_MISSING
        return {"or" if admits else "and": [{"title": {"is empty": admits}}, test("title")]}
    if wanted.key not in _SOURCE_ID:
        return test(wanted.key)
    source = _first_of((REF_DOC_KEY, test(REF_DOC_KEY)), test("document_id"))
    # The core's `document_id` is never empty, so it cannot be told whether it is the user's own.
    return source if wanted.key == "document_id" else _first_of((wanted.key, test(wanted.key)), source)


def _first_of(given: tuple[str, dict[str, Any]], otherwise: dict[str, Any]) -> dict[str, Any]:
    """A condition that holds where its key has a value, and another one elsewhere."""
    key, condition = given
    there = {"and": [{key: {"is empty": False}}, condition]}
    return {"or": [there, {"and": [{key: {"is empty": True}}, otherwise]}]}


def _test(key: str, operator: FilterOperator, value: Any) -> dict[str, Any]:
    if operator == FilterOperator.IS_EMPTY:
        return {key: {"is empty": True}}
    if value is None:
        raise ValueError(f"filter {key!r}: {operator!r} needs a value; use is_empty for missing values")
    if operator in _OF_LISTS:
        if not isinstance(value, list) or not value:
            raise ValueError(f"filter {key!r}: {operator!r} takes a list of values, not {value!r}")
        return {_OF_LISTS[operator]: [{key: {"contains": item}} for item in value]}
    if operator in _OF_STRINGS and not isinstance(value, str):
        raise ValueError(f"filter {key!r}: {operator!r} takes a string, not {value!r}")
    if operator not in _DIRECT:
        raise ValueError(f"unknown filter operator {operator!r} for {key!r}; there are {[o.value for o in _DIRECT]}")
    return {key: {_DIRECT[operator]: value}}
