"""How the query engine calls a language model: the prompts of its own, and its window."""

import pytest
from llama_index.core import PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.schema import TextNode
from pydantic import PrivateAttr

from compmem import RecallConfig
from llama_index_compmem import CompMemIndex
from llama_index_compmem.llm import count_tokens
from tests.frameworks_llama_index import QUESTION, FakeLLM, HashingEncoder, documents

LONG = " ".join(f"Item {n} lies on shelf {n % 7}." for n in range(2000))


class Completing(CustomLLM):
    """A model that completes texts and has no messages, such as a local one."""

    _prompts: list = PrivateAttr(default_factory=list)

    @property
    def metadata(self):
        return LLMMetadata(context_window=2048, num_output=256)

    @property
    def prompts(self):
        return self._prompts

    def complete(self, prompt, formatted=False, **kwargs):
        assert formatted
        self._prompts.append(prompt)
        return CompletionResponse(text="Tarnhill.")

    def stream_complete(self, prompt, formatted=False, **kwargs):
        yield CompletionResponse(text=self.complete(prompt, formatted).text, delta="Tarnhill.")


class AsyncCompleting(Completing):
    """One with async methods of its own."""

    async def acomplete(self, prompt, formatted=False, **kwargs):
        return self.complete(prompt, formatted)

    async def astream_complete(self, prompt, formatted=False, **kwargs):
        async def pieces():
            for piece in self.stream_complete(prompt, formatted):
                yield piece

        return pieces()


async def _ask_in_every_way(index, llm):
    """Answers of the query engine and of a conversation, streamed and whole."""
    engine, streaming = index.as_query_engine(llm=llm), index.as_query_engine(llm=llm, streaming=True)
    chat = index.as_chat_engine(llm=llm)
    return [
        str(engine.query(QUESTION)),
        str(await engine.aquery(QUESTION)),
        "".join(streaming.query(QUESTION).response_gen),
        "".join([piece async for piece in (await streaming.aquery(QUESTION)).async_response_gen()]),
        str(chat.chat(QUESTION)),
        str(await chat.achat("Where?")),
    ]


@pytest.mark.parametrize("kind", [Completing, AsyncCompleting])
async def test_a_completing_llm_gets_its_system_prompt_and_its_query_wrapper(index, kind):
    llm = kind(system_prompt="SPEAK FRENCH.", query_wrapper_prompt=PromptTemplate("<w>{query_str}</w>"))
    assert set(await _ask_in_every_way(index, llm)) == {"Tarnhill."}
    plain = VectorStoreIndex.from_documents(documents(), embed_model=MockEmbedding(4))
    plain.as_query_engine(llm=llm).query(QUESTION)
    assert len(llm.prompts) == 8
    for prompt in llm.prompts:
        assert prompt.startswith("<w>SPEAK FRENCH.\n\n") and prompt.endswith("</w>")
        assert prompt.count("SPEAK FRENCH.") == prompt.count("<w>") == 1


async def test_a_chat_llm_gets_its_system_prompt_as_its_first_message(index):
    llm = FakeLLM(lambda prompt: "Tarnhill.")
    llm.system_prompt, llm.query_wrapper_prompt = "SPEAK FRENCH.", PromptTemplate("<w>{query_str}</w>")
    assert set(await _ask_in_every_way(index, llm)) == {"Tarnhill."}
    for _, messages in llm.calls:
        contents = [message.content for message in messages]
        assert (messages[0].role, contents[0]) == ("system", "SPEAK FRENCH.")
        assert not any("<w>" in content or "SPEAK" in content for content in contents[1:])


def _largest_prompt(llm, **settings):
    index = CompMemIndex.from_nodes([TextNode(text=LONG)], embed_model=HashingEncoder())
    index.as_query_engine(llm=llm, recall_config=RecallConfig(**settings)).query("Where does item 1200 lie?")
    return max(count_tokens(prompt) for prompt in llm.prompts)


@pytest.mark.parametrize("limit", [None, 1500])
def test_the_prompts_of_the_llm_count_for_its_window(limit):
    llm = Completing(
        system_prompt="Answer in French. " * 100, query_wrapper_prompt=PromptTemplate("<w>{query_str}</w>")
    )
    assert 1000 < _largest_prompt(llm, prompt_tokens=limit) <= (limit or 2048 - 256)


@pytest.mark.parametrize("window", [1000, 100_000])
def test_settings_limit_the_window_of_an_llm(monkeypatch, window):
    monkeypatch.setattr(Settings, "_prompt_helper", PromptHelper(context_window=window, num_output=300))
    assert min(window, 2048) / 2 < _largest_prompt(Completing()) <= min(window, 2048) - 300
