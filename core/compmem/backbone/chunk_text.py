"""What a backbone reads of a chunk, and which chunks it reads in one pass."""

from collections.abc import Iterator, Sequence

from compmem.backbone.backbone import Backbone
from compmem.schema import Chunk


def chunk_ids(backbone: Backbone, chunk: Chunk) -> list[int]:
    """What the backbone reads of a chunk: label and context on a line where it has some, then the text.

    Released checkpoints were trained on bare text, and place a prompt behind the memory of a whole chunk of it. Where
    the states are those of the chunk's own tokens, an empty line stands behind each chunk, as between paragraphs.
    """
    labelled = chunk.head and backbone.memory.positions == "rotated"
    text = f"{chunk.head}\n{chunk.text}" if labelled else chunk.text
    return backbone.encode(text if backbone.memory.inserted else f"{text}\n\n")


def window_sizes(sources: Sequence[str], sizes: Sequence[int], most: int) -> Iterator[int]:
    """The `windows` of `Backbone.compress`: chunks in a row that are of one source and have at most so many tokens.

    Args:
        sources: What each chunk is a part of.
        sizes: Tokens of each chunk. One that has more is a window of its own.
        most: Tokens of a window.
    """
    count = held = 0
    for at, tokens in enumerate(sizes):
        if count and (sources[at] != sources[at - 1] or held + tokens > most):
            yield count
            count = held = 0
        count, held = count + 1, held + tokens
    if count:
        yield count
