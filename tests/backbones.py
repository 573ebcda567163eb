"""Tokens, random weights and comparisons of states for tests of the backbone."""

import torch

from compmem.backbone import MemoryConfig

MEMORY = MemoryConfig(ratio=4, window=16, own=("q", "k", "v", "o"))


def tokens(length, seed=0):
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def randomize(backbone, part, scale=0.2):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.parameters(part).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def close(mine, theirs, atol=2e-4):
    torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)


def close_states(mine, theirs):
    close(mine.keys, theirs.keys)
    close(mine.values, theirs.values)
