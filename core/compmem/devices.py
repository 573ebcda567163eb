"""Device and dtype of a model, from their names."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(device: str | torch.device | None) -> torch.device:
    """The device of this name; None: a GPU if there is one.

    Raises:
        ValueError: It is unknown, or not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is unknown to torch: 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: torch sees no CUDA device here; use device='cpu'")
    if parsed.type == "cuda" and (parsed.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device={str(device)!r}: torch sees {count} CUDA devices here, counted from 0")
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device='mps': torch sees no Apple GPU here; use device='cpu'")
    return parsed


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of this name; None for None.

    Raises:
        ValueError: The name is unknown.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]
