"""Questions answered by a language model in one call each, which it may extend by asking back, with citations.

`OPENAI_BASE_URL` names any server that speaks OpenAI's protocol, `OPENAI_MODEL` the model there. Without a server a
scripted model is used instead, so that the program runs offline.

    OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_MODEL=qwen2.5:1.5b python examples/language_model.py
"""

import os
from collections.abc import Callable, Iterator, Sequence

from compmem import Document, MemoryIndex, RecallConfig
from compmem.readers.endpoint import Endpoint
from compmem.schema import Message

HANDBOOK = {
    "Northgate depot": "The Northgate depot stores the spare rotors. It is run by Maria Oduya.",
    "Maria Oduya": "Maria Oduya joined in 2019. Her deputy is Tomas Lind. She reports to the board.",
    "Tomas Lind": "Tomas Lind is trained in first aid. He keeps the key of the rotor cage in room 12.",
    "Southfield depot": "The Southfield depot stores cables and is run by Ines Falk.",
}
QUESTION = "Who is the deputy of the person who runs the Northgate depot?"


def scripted(messages: Sequence[Message]) -> Iterator[str]:
    """A scripted model: it asks for missing facts, and cites the block that it answers from."""
    prompt = messages[-1]["content"]
    blocks = prompt.split("<block>\n")[1:]
    number = next((n for n, block in enumerate(blocks, start=1) if "deputy is Tomas Lind" in block), None)
    yield f"Tomas Lind [{number}]" if number else "SEARCH: deputy of Maria Oduya"


def model() -> Callable[[Sequence[Message]], Iterator[str]]:
    """The model of the server that the environment names, or the scripted one."""
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        return scripted
    key = "OPENAI_API_KEY" if os.environ.get("OPENAI_API_KEY") else None
    return Endpoint(os.environ.get("OPENAI_MODEL", "default"), base_url=url, api_key_env=key)


def main() -> None:
    """Asks one question and prints the answer, what it cites and what it cost."""
    with MemoryIndex.create() as index:
        index.add(Document(id=title, title=title, text=text) for title, text in HANDBOOK.items())
        answer = index.answer(QUESTION, RecallConfig(writer_blocks=3, rounds=1, cite=True), chat=model())
    print(f"answer: {answer.text}")
    for number, source in enumerate(answer.sources, start=1):
        print(f"source: [{number}] {source.chunk.document_id}{' (cited)' if source.cited else ''}")
    print(f"calls: {answer.usage.model_calls}, asked back: {answer.usage.rounds}")


if __name__ == "__main__":
    main()
