"""The machine and the command of a measurement."""

import platform
import shlex
import sys
from pathlib import Path
from typing import Any


def command() -> str:
    """The command without folders of this machine, quoted for a shell."""
    run = Path(sys.argv[0])
    program = f"python -m compmem_research.bench.{run.stem}" if run.suffix == ".py" else "compmem"
    given = [Path(a).name if a.startswith("/") else a for a in sys.argv[1:]]
    return f"{program} {shlex.join(given)}"


def machine() -> dict[str, Any]:
    """Processor, threads, GPU and versions."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cpu_features": [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
