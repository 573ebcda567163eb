"""Whether weights changed since something was computed from them."""

from collections.abc import Sequence

from torch import Tensor


def weights_version(weights: Sequence[Tensor]) -> tuple[object, ...] | None:
    """A key that changes with the weights; None if torch does not count their changes.

    An optimiser, `load_state_dict` and a move to another device change a pointer or a version.
    """
    if any(weight.is_inference() for weight in weights):
        return None
    return tuple((weight.data_ptr(), weight._version) for weight in weights)
