"""The policy as it was: a frozen copy that shares every weight that is not trained."""

import copy
from collections.abc import Collection

from torch.nn.parameter import Parameter

from compmem.backbone import Backbone
from compmem.backbone.checkpoint import Parts


def frozen_copy(backbone: Backbone, trained: Collection[Parameter]) -> Backbone:
    """A backbone that stays as this one is; it takes as much memory as what is trained."""
    kept = {id(p) for p in trained}
    shared = {id(p): p for p in backbone.decoder.parameters() if id(p) not in kept}
    model, decoder = copy.deepcopy((backbone.model, backbone.decoder), shared)
    for parameter in decoder.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    parts = Parts(
        model=model, tokenizer=backbone.tokenizer, decoder=decoder.eval(), memory=backbone.memory,
        adapters=backbone.adapters,
    )  # fmt: skip
    return Backbone(parts)
