"""Figures from the papers, for separate columns in our tables."""

from typing import Final

SUB_EM: Final[dict[str, dict[str, float]]] = {
    "RAG + Qwen2.5-7B": {
        "7k": 67.19, "14k": 66.41, "28k": 66.41, "56k": 67.19, "112k": 64.84, "224k": 64.06, "448k": 62.5,
        "896k": 61.72, "1.75m": 62.38,
    },
    "Qwen2.5-7B-1M": {
        "7k": 61.72, "14k": 56.25, "28k": 53.91, "56k": 55.47, "112k": 51.56, "224k": 33.59, "448k": 12.5, "896k": 0.0,
    },
    "RL-MemAgent-7B": {
        "7k": 82.03, "14k": 79.69, "28k": 78.91, "56k": 77.34, "112k": 79.69, "224k": 72.66, "448k": 74.22,
        "896k": 76.56, "1.75m": 75.78,
    },
    "LycheeMemory-7B": {
        "7k": 77.34, "14k": 76.56, "28k": 75.0, "56k": 76.56, "112k": 75.78, "224k": 73.44, "448k": 74.22,
        "896k": 72.66, "1.75m": 71.09,
    },
    "LycheeMemory-7B w/o gate": {
        "7k": 80.47, "14k": 81.25, "28k": 82.03, "56k": 81.25, "112k": 80.47, "224k": 79.69, "448k": 75.0,
        "896k": 75.78, "1.75m": 78.12,
    },
}  # fmt: skip
"""RULER-HQA, two-way sub-EM of 128 questions, 7B language models (2602.08382, table 1; 2507.02259)."""

FIRST_FIFTH: Final[dict[str, dict[str, str]]] = {
    "MemAgent-7B": {
        "112k": "79.69 / 171.65 s", "224k": "78.91 / 358.60 s", "448k": "78.12 / 804.23 s", "896k": "80.47 / 1691.93 s",
    },
    "GRU-Mem-7B": {
        "112k": "78.91 / 60.81 s", "224k": "82.03 / 111.67 s", "448k": "80.47 / 213.04 s", "896k": "78.12 / 454.72 s",
    },
}  # fmt: skip
"""RULER-HQA with the evidence in the first fifth: accuracy and seconds on 8 GPUs (2602.10560, table 2)."""

EXITS: Final = "early 2.93, exact 81.25, late 15.82"
"""GRU-Mem-7B's exits in per cent, mean of 112K to 896K with the evidence in the first fifth (2602.10560)."""

CHUNK_RECALL: Final[dict[str, dict[str, float]]] = {
    "text-embedding-3-large": {"56k": 94.3, "112k": 82.1, "224k": 80.9},
    "gate without memory": {"56k": 88.2, "112k": 76.4, "224k": 74.8},
    "gate with memory": {"56k": 98.5, "112k": 86.3, "224k": 84.1},
}
"""Recall of gold chunks among 8 of 4096 tokens (2602.08382, table 3)."""
