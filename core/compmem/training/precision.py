"""What a backbone in training computes in where its frozen weights are in half precision."""

import torch

from compmem.backbone import Backbone


def precision(backbone: Backbone) -> torch.autocast:
    """To decode and measure under: what is trained is float32 even where the frozen weights are not."""
    weight = backbone.decoder.embed_tokens.weight
    mixed = weight.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(weight.device.type, weight.dtype if mixed else torch.bfloat16, enabled=mixed)
