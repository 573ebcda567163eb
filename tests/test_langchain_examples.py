"""The LangChain examples run unchanged, in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(name):
    path = os.pathsep.join([str(ROOT / "core"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "LANGSMITH_TRACING": "false"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_langgraph_agent():
    out = run("langgraph_agent.py")
    lines = out.splitlines()
    assert lines[0] == "agent: ['search_handbook']"
    assert "run by Maria Oduya" in out
    assert "reason: " in out
    assert "Tomas Lind" in next(line for line in lines if line.startswith("reply: "))
    assert "source: Maria Oduya" in out


def test_the_chatbot_before_and_after():
    blocks = run("chatbot_before_after.py").strip().split("\n\n")
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
