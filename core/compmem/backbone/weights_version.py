"""Whether weights changed since something was computed from them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def weights_version(weights: Sequence[Tensor]) -> tuple[object, ...] | None:
    """A key that changes with the weights and with autocast; None if torch does not count their changes.

    An optimiser, `load_state_dict` and a move to another device change a pointer or a version.
    """
    if any(weight.is_inference() for weight in weights):
        return None
    mixed = torch.is_autocast_enabled(weights[0].device.type)
    return (mixed, *((weight.data_ptr(), weight._version) for weight in weights))
