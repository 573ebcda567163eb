"""The example with a language model runs unchanged, scripted and with a server, in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

from tests.test_cli import endpoint  # noqa: F401

ROOT = Path(__file__).parent.parent


def run(**variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI")}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(ROOT)]), "HF_HUB_OFFLINE": "1", **variables}
    program = [sys.executable, str(ROOT / "examples" / "language_model.py")]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_scripted():
    out = run()
    assert "answer: Tomas Lind [" in out and "Maria Oduya (cited)" in out


def test_it_asks_the_server_that_the_environment_names(endpoint):  # noqa: F811
    out = run(OPENAI_BASE_URL=f"http://127.0.0.1:{endpoint.server_port}/v1", OPENAI_MODEL="small")
    assert "calls: 1" in out
    assert [body["model"] for _, _, body in endpoint.seen] == ["small"]
