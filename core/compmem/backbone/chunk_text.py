"""What a backbone reads of a chunk."""

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
