"""A LangGraph agent that uses the retriever as a tool and leaves multi-hop questions to a node.

Runs offline: the chat model is scripted. With `OPENAI_BASE_URL` and `OPENAI_MODEL` (`pip install langchain-openai`) a
model of that server takes its place; it must be able to call tools.

    python examples/langgraph_agent.py
"""

import os
from typing import Annotated, Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from typing_extensions import TypedDict

from langchain_compmem import CompMemReasoner, CompMemRetriever, recall_tool

HANDBOOK = {
    "Northgate depot": "The Northgate depot stores the spare rotors. It is run by Maria Oduya.",
    "Maria Oduya": "Maria Oduya joined in 2019. Her deputy is Tomas Lind. She reports to the board.",
    "Tomas Lind": "Tomas Lind is trained in first aid. He keeps the key of the rotor cage in room 12.",
    "Southfield depot": "The Southfield depot stores cables and is run by Ines Falk.",
    "Holidays": "Every employee has thirty days of holiday a year, to be taken before April.",
}
QUESTION = "Who is the deputy of the person who runs the Northgate depot?"


class State(TypedDict, total=False):
    """The state of the graph: the reasoner reads `question` and writes `answer` and `context`."""

    messages: Annotated[list[AnyMessage], add_messages]
    question: str
    answer: str
    context: list[Document]


def scripted_model() -> GenericFakeChatModel:
    """Looks the depot up, then leaves the rest to memory."""
    call = {"name": "search_handbook", "args": {"query": "Northgate depot"}, "id": "call-1"}
    replies = [AIMessage("", tool_calls=[call]), AIMessage("That takes more than one document; memory works it out.")]
    return GenericFakeChatModel(messages=iter(replies))


def real_model() -> BaseChatModel | None:
    """The model of the server in the environment variables; None if they are not set."""
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        return None
    from langchain_openai import ChatOpenAI

    key = os.environ.get("OPENAI_API_KEY", "none")
    return ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "default"), base_url=url, api_key=key)


def build(retriever: CompMemRetriever, model: BaseChatModel | None) -> Any:
    """The graph: the agent and its tool, then the reasoner."""
    search = recall_tool(
        retriever, name="search_handbook", description="Finds entries of the handbook.", skip_seen=True
    )
    calling = scripted_model() if model is None else model.bind_tools([search])

    def agent(state: State) -> State:
        return {"messages": [calling.invoke(state["messages"])]}

    def reply(state: State) -> State:
        return {"messages": [AIMessage(state["answer"])]}

    graph = StateGraph(State)
    graph.add_node("agent", agent)
    graph.add_node("tools", ToolNode([search]))
    graph.add_node("reason", CompMemReasoner(index=retriever.index, chat_model=model))
    graph.add_node("reply", reply)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition, {"tools": "tools", END: "reason"})
    graph.add_edge("tools", "agent")
    graph.add_edge("reason", "reply")
    graph.add_edge("reply", END)
    return graph.compile()


def main() -> None:
    """Asks one question and prints what each node did."""
    documents = [Document(id=title, page_content=text, metadata={"title": title}) for title, text in HANDBOOK.items()]
    retriever = CompMemRetriever.from_documents(documents, k=2)
    asked = {"messages": [HumanMessage(QUESTION)], "question": QUESTION}
    for update in build(retriever, real_model()).stream(asked, stream_mode="updates"):
        for node, change in update.items():
            for message in change.get("messages", []):
                print(f"{node}: {message.text or [call['name'] for call in message.tool_calls]}")
            if node == "reason":
                print(f"{node}: {change['answer']}")
                for document in change["context"]:
                    print(f"  source: {document.id} ({document.metadata['compmem_score']:.2f})")


if __name__ == "__main__":
    main()
