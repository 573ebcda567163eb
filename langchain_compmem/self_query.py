"""Structured queries of LangChain as metadata filters, for `SelfQueryRetriever`."""

from typing import Any, Final

from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery, Visitor

_OPERATORS: Final = {
    Comparator.EQ: "==",
    Comparator.NE: "!=",
    Comparator.GT: ">",
    Comparator.GTE: ">=",
    Comparator.LT: "<",
    Comparator.LTE: "<=",
    Comparator.CONTAIN: "contains",
    Comparator.IN: "in",
    Comparator.NIN: "not in",
}


class CompMemTranslator(Visitor):
    """The `structured_query_translator` of a `SelfQueryRetriever` over a `CompMemVectorStore`."""

    allowed_comparators = tuple(_OPERATORS)
    allowed_operators = tuple(Operator)

    def visit_operation(self, operation: Operation) -> dict[str, Any]:
        """The filter of an `and`, `or` or `not`."""
        self._validate_func(operation.operator)
        parts = [argument.accept(self) for argument in operation.arguments]
        return {"not": parts} if operation.operator is Operator.NOT else {operation.operator.value: parts}

    def visit_comparison(self, comparison: Comparison) -> dict[str, Any]:
        """The filter of one comparison; dates are compared as ISO text."""
        self._validate_func(comparison.comparator)
        value = comparison.value
        if isinstance(value, dict) and value.get("type") in ("date", "datetime"):
            value = value[value["type"]]
        return {comparison.attribute: {_OPERATORS[comparison.comparator]: value}}

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        """The question, and the other arguments of the search."""
        wanted = structured_query.filter
        return structured_query.query, {} if wanted is None else {"filter": wanted.accept(self)}
