"""The LlamaIndex example runs unchanged, in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pipeline():
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "core"), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, str(ROOT / "examples" / "llama_index_pipeline.py")]
    run = subprocess.run(program, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    said = [line.partition(": ") for line in run.stdout.splitlines()]
    told = {key: value for key, _, value in said}
    assert "Astrid Holm was born in Varberg." in told["answer"]
    assert sorted(v.partition(" (")[0] for k, _, v in said if k == "source") == ["Astrid Holm", "Lindgren Collection"]
    assert told["step 2"].startswith("Astrid Holm: ")
    assert told["only recent"].startswith("The Town Gallery shows the Brandt Collection.")
    assert [v for k, _, v in said if k == "chat"][-1].startswith("Astrid Holm was born in Varberg.")
    assert told["agent"] == f"The papers say: {told['answer']}"
