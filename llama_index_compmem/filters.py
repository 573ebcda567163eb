"""Metadata filters of LlamaIndex as filters of CompMem."""

from collections.abc import Callable
from typing import Any, Final

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

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
_OF_LISTS: Final = {FilterOperator.ANY: "or", FilterOperator.ALL: "and"}


def to_filter(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """The CompMem filter that is equivalent to `filters`; None if there are none.

    As in the framework's own stores, a missing key matches only `!=` and `nin`, `any` and `all` look for members of a
    list or parts of a string, and `not` admits nodes that none of its filters admits. The keys `document_id` and
    `title` are the node's own id and title if its metadata has no such key.

    Raises:
        ValueError: An operator or condition is unknown, or a value does not fit its operator.
    """
    if filters is None or not filters.filters:
        return None
    if not isinstance(filters, MetadataFilters):
        raise ValueError(f"filters={filters!r} must be MetadataFilters")
    return _group(filters)


def _group(filters: MetadataFilters) -> dict[str, Any]:
    parts = [_group(f) if isinstance(f, MetadataFilters) else _single(f) for f in filters.filters]
    if not parts:
        return {}
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
    key, operator, value = wanted.key, wanted.operator, wanted.value
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
