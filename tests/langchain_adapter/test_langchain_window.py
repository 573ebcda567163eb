"""Metadata that is searched and shown, and prompts that fit into the model's window, through LangChain."""

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField

from compmem import LoopConfig, RecallConfig
from langchain_compmem import CompMemReasoner, CompMemRetriever, CompMemVectorStore, ReasoningError
from langchain_compmem.window import estimate_tokens, window_of
from tests.frameworks_langchain import QUESTION, UPDATE, WORLD, ScriptedChat, make_index

WINDOW = 900
LONG = " ".join(f"Line {n} of the ledger says that the Orchid device was cleaned." for n in range(1, 240))
REPLY = UPDATE.format(notes="Elena Marsh was born in Tarnhill. " * 60, next="continue")


@pytest.fixture
def index(tmp_path):
    with make_index(tmp_path / "index") as made:
        yield made


def pieces(text):
    """A model's own token counter, which gives more than any estimate."""
    return [0] * len(text)


def lengths(chat, count=lambda text: len(pieces(text))):
    return [sum(count(message.content) for message in messages) for messages in chat.asked]


WAYS = {
    "plain": lambda chat: chat,
    "bound": lambda chat: chat.bind(stop=["x"]).with_config(tags=["mine"]),
    "retried": lambda chat: chat.with_retry(),
    "a field": lambda chat: chat.configurable_fields(profile=ConfigurableField(id="profile")),
    "an alternative": lambda chat: ScriptedChat().configurable_alternatives(ConfigurableField(id="which"), mine=chat),
    "behind another": lambda chat: ScriptedChat(replies=[OSError("down")]).with_fallbacks([chat]),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_window_is_the_models_own(way):
    chat = ScriptedChat(profile={"max_input_tokens": WINDOW})
    assert window_of(WAYS[way](chat), None).tokens == WINDOW
    assert window_of(WAYS[way](chat), 77).tokens == 77
    assert window_of(WAYS[way](ScriptedChat()), None).tokens is None
    small = ScriptedChat(profile={"max_input_tokens": 5})
    assert window_of(chat.with_fallbacks([small]), None).tokens == 5


def test_an_alternative_that_a_function_makes_is_not_made_to_look_at_it():
    def make():
        raise ValueError("no key")

    chat = ScriptedChat(profile={"max_input_tokens": WINDOW})
    both = chat.configurable_alternatives(ConfigurableField(id="which"), other=make)
    assert window_of(both, None).tokens == WINDOW


def test_tokens_are_counted_by_the_model_if_it_can():
    chat = ScriptedChat(profile={"max_input_tokens": WINDOW}, custom_get_token_ids=pieces)
    assert window_of(chat, None).count("twelve chars") == 12

    def offline(text):
        raise OSError("no network")

    for other in (ScriptedChat(custom_get_token_ids=offline), ScriptedChat()):
        assert window_of(other, WINDOW).count is estimate_tokens


@pytest.mark.parametrize(
    ("settings", "profile"),
    [
        ({}, {"max_input_tokens": 5000}),
        ({"reader": "chat"}, {"max_input_tokens": 5000}),
        ({"reader": "chat", "blocks_per_step": 6, "gate": "off", "prompt_tokens": 5000}, None),
    ],
)
async def test_no_prompt_is_longer_than_the_window(index, settings, profile):
    retriever = CompMemRetriever(index=index)
    retriever.upsert([*WORLD, Document(id="ledger", page_content=LONG, metadata={"title": "Orchid device"})])
    config = LoopConfig(max_steps=2, **settings)
    for mode in ("sync", "async"):
        chat = ScriptedChat(replies=[REPLY], profile=profile, custom_get_token_ids=pieces)
        reasoner = CompMemReasoner(index=index, chat_model=chat, recall_config=config)
        output = reasoner.invoke(QUESTION) if mode == "sync" else await reasoner.ainvoke(QUESTION)
        assert output["answer"]
        assert len(LONG) > 5000 >= max(lengths(chat)) > 1000
    assert any("of the ledger" in m.content for messages in chat.asked for m in messages) or "reader" not in settings


async def test_a_long_conversation_is_cut_to_its_end(index):
    CompMemRetriever(index=index).upsert(WORLD)
    history = [turn for n in range(200) for turn in (HumanMessage(f"Turn {n}?"), AIMessage(f"It is {n}. " * 20))]
    for mode in ("sync", "async"):
        chat = ScriptedChat(replies=[QUESTION, REPLY], profile={"max_input_tokens": 5000}, custom_get_token_ids=pieces)
        reasoner = CompMemReasoner(index=index, chat_model=chat)
        asked = {"question": "Where was she born?", "chat_history": history}
        output = reasoner.invoke(asked) if mode == "sync" else await reasoner.ainvoke(asked)
        assert max(lengths(chat)) <= 5000
        first = [message.content for message in chat.asked[0]]
        assert any("It is 199." in text for text in first) and not any("It is 9." in text for text in first)
        assert QUESTION in chat.asked[1][-1].content
        assert output["usage"]["model_calls"] == len(chat.asked)


def test_a_window_that_holds_no_conversation_asks_the_question_as_it_is(index):
    CompMemRetriever(index=index).upsert(WORLD)
    chat = ScriptedChat(replies=[REPLY], profile={"max_input_tokens": 220})
    reasoner = CompMemReasoner(index=index, chat_model=chat)
    with pytest.raises(ReasoningError, match="prompt_tokens=220"):
        reasoner.invoke({"question": QUESTION, "chat_history": [HumanMessage("word " * 300)]})
    assert chat.asked == []


LETTER = Document(id="letter", page_content="The mill will be sold in spring.", metadata={
    "author": "Bianca Rossi", "year": 2019, "tags": ["trade", "mills"], "secret": "Quartz", "nothing": None,
})  # fmt: skip


@pytest.mark.parametrize("split", [False, True])
def test_metadata_is_searched_by_choice(index, split):
    retriever = CompMemRetriever(index=index, metadata_keys=["author", "tags", "nothing"], split=split)
    retriever.upsert([*WORLD, LETTER])
    found = retriever.invoke("What did Bianca Rossi write?", k=1)
    assert (found[0].id, found[0].page_content) == ("letter", LETTER.page_content)
    assert retriever.get(["letter"]) == [LETTER]
    assert index.get("letter").context == "author: Bianca Rossi\ntags: trade, mills"
    changed = LETTER.model_copy(update={"metadata": {**LETTER.metadata, "author": "Carla Neri"}})
    retriever.upsert([changed])
    assert index.get("letter").context.startswith("author: Carla Neri\n")
    store = CompMemVectorStore(index, metadata_keys=["secret"])
    store.add_documents([LETTER])
    assert store.similarity_search("Who knows of Quartz?", k=1) == [LETTER]


async def test_a_document_prompt_shows_metadata(index):
    CompMemRetriever(index=index).upsert([LETTER])
    prompt = PromptTemplate.from_template("By {author} in {year}:\n{page_content}")
    for settings in (LoopConfig(gate="off", reader="chat"), RecallConfig()):
        for mode in ("sync", "async"):
            chat = ScriptedChat(replies=[REPLY])
            reasoner = CompMemReasoner(index=index, chat_model=chat, document_prompt=prompt, recall_config=settings)
            question = "When will the mill be sold?"
            _ = reasoner.invoke(question) if mode == "sync" else await reasoner.ainvoke(question)
            shown = chat.asked[0][-1].content.replace("**", "")
            assert f"By Bianca Rossi in 2019:\n{LETTER.page_content}" in shown
            assert "Quartz" not in shown
