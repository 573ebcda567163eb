"""Batches that fit: limited by a token budget, and halved when the device runs out of memory."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

COMPRESS_BATCH_TOKENS = {"cuda": 16384}
"""Tokens of one forward pass of compression; larger passes are no faster on a GPU and need more memory."""
SCORE_BATCH_SLOTS = {"cuda": 65536}
"""Memory and prompt tokens of one forward pass that scores blocks."""
CPU_BATCH_TOKENS = 4096
SMALL_BATCH_DIVISOR = 16
"""A batch below 1/16 of the budget may have any padding: it does not fill the device anyway."""
PADDING_DIVISOR = 8
"""In a larger batch, less than 1/8 of the tokens is padding."""


def padded_batches(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of items, longest first, in batches of at most `budget` after padding to the longest item.

    A batch ends before an item that would make too much of it padding.
    """
    batch, filled = list[int](), 0
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        padded = (len(batch) + 1) * max(1, sizes[batch[0]] if batch else 0)
        padding = padded - filled - sizes[item]
        if batch and (
            padded > budget or (padded * SMALL_BATCH_DIVISOR > budget and padding * PADDING_DIVISOR > padded)
        ):
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += sizes[item]
    if batch:
        yield batch


def run_in_batches(
    run: Callable[[Sequence[int]], list[Result]],
    sizes: Sequence[int],
    budgets: Mapping[str, int],
    device: torch.device,
    what: str,
    release: Callable[[], None],
) -> list[Result]:
    """Results of `run`, which takes numbers of items, for all items of these sizes, in batches that fit.

    Raises:
        MemoryError: A single item does not fit.
    """
    results: dict[int, Result] = {}
    for batch in padded_batches(sizes, budgets.get(device.type, CPU_BATCH_TOKENS)):
        results.update(zip(batch, run_or_halve(run, batch, what, release), strict=True))
    return [results[number] for number in range(len(sizes))]


def run_or_halve(
    run: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    what: str,
    release: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Results of the items, run as one batch, or in halves if the device runs out of memory.

    Args:
        run: Computes the results of a batch.
        items: All of them.
        what: Name of one item, for the error message.
        release: Frees cached memory before the next try.

    Raises:
        MemoryError: A single item does not fit.
    """
    return _halving(run, items, what, release, (len(items),))


def _halving(
    run: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    what: str,
    release: Callable[[], None],
    tried: tuple[int, ...],
) -> list[Result]:
    reason = ""
    try:
        return run(items)
    except torch.OutOfMemoryError as error:
        # Keep only the text: the traceback would keep the tensors that did not fit.
        reason = str(error).split(". ")[0]
    release()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        sizes = ", ".join(map(str, tried))
        raise MemoryError(f"{what} does not fit on the device even one at a time (tried batches of {sizes}): {reason}")
    half = len(items) // 2
    log.warning("out of memory with a batch of %d, continuing with halves", len(items))
    parts = (items[:half], items[half:])
    return [result for part in parts for result in _halving(run, part, what, release, (*tried, len(part)))]
