"""An index of the LangChain documents, a reasoner with a scripted model, and ways to ask it."""

from contextlib import contextmanager

from compmem import (
    LoopConfig,
)
from langchain_compmem import CompMemReasoner, CompMemRetriever
from tests.frameworks_langchain import QUESTION, UPDATE, WORLD, ScriptedChat, make_index

STEP_1 = UPDATE.format(notes="Elena Marsh invented the Orchid device.", next="continue")
STEP_2 = UPDATE.format(notes="Elena Marsh invented it; she was born in Tarnhill.", next="end")
READ_ALL = LoopConfig(gate="off", blocks_per_step=2)
"""No gate, so that a scripted model decides when the loop ends."""


@contextmanager
def world(folder):
    with make_index(folder / "index") as made:
        CompMemRetriever(index=made).upsert(WORLD)
        yield made


def ids(documents):
    return [document.id for document in documents]


def chatting(retriever, *replies, **fields):
    replies = replies or (STEP_1, STEP_2, "In Tarnhill.")
    return CompMemReasoner(
        index=retriever.index,
        chat_model=ScriptedChat(replies=list(replies)),
        recall_config=READ_ALL.replace(reader="chat"),
        **fields,
    )


async def ask(reasoner, way, config):
    if way == "invoke":
        reasoner.invoke(QUESTION, config)
    elif way == "stream":
        assert list(reasoner.stream(QUESTION, config))
    elif way == "ainvoke":
        await reasoner.ainvoke(QUESTION, config)
    else:
        assert [part async for part in reasoner.astream(QUESTION, config)]
