"""KVzap (2601.07891): KVzip's scores predicted while the text is read, without a repetition.

The prediction of the logarithm of a state's score is a linear function of the layer's queries at the same token, before
rotation. The paper predicts from the hidden state, of which these are a linear function in most models.
`compmem train importance` fits the weights.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from compmem.backbone.decoder import Context

FeatureFunction = Callable[[int, Tensor], Tensor]
"""A function of the layer number and its features `[rows, tokens, features]`; its result is stored."""


class QueryFeatures(Context):
    """Another context's attention; keeps something of the features of every layer.

    Args:
        inner: The context that attends.
        layers: Number of layers.
        use: What is kept.
    """

    def __init__(self, inner: Context, layers: int, use: FeatureFunction) -> None:
        self._inner = inner
        self._use = use
        self.features: list[Tensor | None] = [None] * layers
        """What was kept, by layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        """As the inner context."""
        # The features are the queries of all heads, side by side.
        self.features[layer] = self._use(layer, query.detach().transpose(1, 2).flatten(2))
        return self._inner.attend(layer, query, key, value, scale=scale, dropout=dropout)


def predict_log_scores(weights: Tensor, features: Tensor) -> Tensor:
    """The logarithm of scores, `[rows, kv_heads, tokens]`.

    Args:
        weights: Those of one layer, `[kv_heads, features + 1]`; the last ones are added as they are.
        features: `[rows, tokens, features]`.
    """
    # In 16 bits many scores would be equal.
    with torch.autocast(features.device.type, enabled=False):
        made: Tensor = features.float() @ weights[:, :-1].T.float() + weights[:, -1].float()
    return made.transpose(1, 2)
