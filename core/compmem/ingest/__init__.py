"""From documents to memory blocks: chunks, compression, the store."""
