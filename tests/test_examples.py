"""The examples run unchanged, offline and with a server."""

from tests.test_cli import endpoint  # noqa: F401


def test_the_language_model_is_scripted_without_a_server(run_example):
    out = run_example("language_model.py")
    assert "answer: Tomas Lind [" in out and "Maria Oduya (cited)" in out


def test_the_language_model_is_the_one_of_the_server_that_the_environment_names(run_example, endpoint):  # noqa: F811
    address = f"http://127.0.0.1:{endpoint.server_port}/v1"
    out = run_example("language_model.py", OPENAI_BASE_URL=address, OPENAI_MODEL="small")
    assert "calls: 1" in out
    assert [body["model"] for _, _, body in endpoint.seen] == ["small"]


def test_the_langgraph_agent(run_example):
    out = run_example("langgraph_agent.py")
    lines = out.splitlines()
    assert lines[0] == "agent: ['search_handbook']"
    assert "run by Maria Oduya" in out
    assert "reason: " in out
    assert "Tomas Lind" in next(line for line in lines if line.startswith("reply: "))
    assert "source: Maria Oduya" in out


def test_the_chatbot_before_and_after(run_example):
    blocks = run_example("chatbot_before_after.py").strip().split("\n\n")
    assert len(blocks) == 3
    expected = (
        "handle each request in a new thread",
        "certificates and possibly a private key",
        "in lowest terms",
    )
    said = {"before": 0, "after": 0}
    for block, answer in zip(blocks, expected, strict=True):
        _, before, before_sources, after, after_sources = block.splitlines()
        assert "sources: " in before_sources
        assert "sources: " in after_sources
        said["before"] += answer in before
        said["after"] += answer in after
    assert said["after"] == 3 > said["before"]


def test_the_llama_index_pipeline(run_example):
    said = [line.partition(": ") for line in run_example("llama_index_pipeline.py").splitlines()]
    told = {key: value for key, _, value in said}
    assert "Astrid Holm was born in Varberg." in told["answer"]
    assert sorted(v.partition(" (")[0] for k, _, v in said if k == "source") == ["Astrid Holm", "Lindgren Collection"]
    assert told["step 2"].startswith("Astrid Holm: ")
    assert told["only recent"].startswith("The Town Gallery shows the Brandt Collection.")
    assert [v for k, _, v in said if k == "chat"][-1].startswith("Astrid Holm was born in Varberg.")
    assert told["agent"] == f"The papers say: {told['answer']}"
