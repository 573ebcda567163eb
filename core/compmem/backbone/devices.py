"""Device and dtype of a backbone, from their names."""

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_of(device: str | torch.device | None) -> torch.device:
    """The device of this name; None: a GPU if there is one.

    Raises:
        ValueError: It is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: torch sees no CUDA device here; use device='cpu'")
    return place


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
