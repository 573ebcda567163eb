"""The layers of a BERT: in floats, and with linear layers in 8 bits.

The 8-bit layers have static scales: except for rounding, the vector of a text does not depend on other texts in the
batch. Two techniques keep 8 bits accurate (after SmoothQuant, 2211.10438, and LLM.int8(), 2208.07339). The input
channels of a linear layer are scaled against its weights; this costs nothing, since the factors go into the layer norm
before it. The few hidden channels with large values stay in fp32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOAT_CHANNELS = 32

MAX_WEIGHT = 127 if torch.cpu._is_vnni_supported() and "AVX512" in torch.backends.cpu.get_cpu_capability() else 88
"""Largest 8-bit weight. A CPU without VNNI adds two products in 16 bits, and with weights up to 127 they overflow."""

Pair = tuple[Tensor, Tensor]
"""Weight and bias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWeights:
    """One transformer layer. `norm_in` is the layer norm before it, of the previous layer or of the embedding."""

    norm_in: Pair
    qkv: Pair
    out: Pair
    norm_mid: Pair
    up: Pair
    down: Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLayout:
    """Layout of the tokens `[rows * width, dim]` of a batch; `mask` is added to attention scores."""

    rows: int
    width: int
    heads: int
    eps: float
    mask: Tensor | None


Layer = Callable[[Tensor, BatchLayout], Tensor]
"""Sums before the layer's first norm -> sums before its last norm, `[tokens, dim]` each."""


class Ranges:
    """Minimum and maximum of each channel of the four inputs of linear layers, `[channels]` each."""

    def __init__(self) -> None:
        self._found: dict[str, Pair] = {}

    def update(self, name: str, x: Tensor) -> None:
        """Extends the range by an input's values `[tokens, channels]`."""
        low, high = x.amin(0), x.amax(0)
        if name in self._found:
            low, high = torch.minimum(low, self._found[name][0]), torch.maximum(high, self._found[name][1])
        self._found[name] = low, high

    def __getitem__(self, name: str) -> Pair:
        return self._found[name]


class FloatLayer:
    """A layer in floats, as in the paper."""

    def __init__(self, weights: LayerWeights, ranges: Ranges | None = None) -> None:
        self._w = weights
        self._ranges = ranges

    def __call__(self, x: Tensor, shape: BatchLayout) -> Tensor:
        """A `Layer`."""
        w = self._w
        x = layer_norm(x, w.norm_in, shape)
        a = _merge(_attend(F.linear(x, *w.qkv), shape))
        y = layer_norm(x + F.linear(a, *w.out), w.norm_mid, shape)
        h = F.gelu(F.linear(y, *w.up))
        if self._ranges is not None:
            for name, value in (("x", x), ("a", a), ("y", y), ("h", h)):
                self._ranges.update(name, value)
        return y + F.linear(h, *w.down)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Int8Linear:
    """A linear layer with 8-bit weights, one scale per row; its input is bytes `round(x / smooth / scale) + zero`."""

    smooth: Tensor
    scale: float
    zero: int
    packed: Tensor
    weight_scales: Tensor
    bias: Tensor

    @classmethod
    def make(cls, layer: Pair, low: Tensor, high: Tensor, *, alpha: float, margin: float) -> "_Int8Linear":
        """From fp32 weights and the range of each input channel; `alpha` is its share moved into the weights."""
        weight, bias = layer
        most = torch.maximum(low.abs(), high.abs()).clamp(min=1e-5)
        smooth = most**alpha / weight.abs().amax(0).clamp(min=1e-5) ** (1 - alpha) if alpha else torch.ones_like(most)
        least, largest = float((low / smooth).min()) * margin, float((high / smooth).max()) * margin
        scale = (largest - least) / 255
        weight = weight * smooth
        scales = weight.abs().amax(1).clamp(min=1e-8) / MAX_WEIGHT
        packed = torch.ops.onednn.qlinear_prepack((weight / scales[:, None]).round().to(torch.int8), None)
        zero = round(-least / scale)
        return cls(smooth=smooth, scale=scale, zero=zero, packed=packed, weight_scales=scales, bias=bias)

    def norm(self, norm: Pair) -> Pair:
        """A layer norm whose output is this layer's input, before it is cut and rounded to bytes."""
        factor = 1 / (self.smooth * self.scale)
        return norm[0] * factor, norm[1] * factor + self.zero + 0.5

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, self.scale, self.zero, self.packed, self.weight_scales, _zeros(self), self.bias,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out

    def gelu(self, x: Tensor, scale: float, zero: int) -> Tensor:
        """The layer and GELU, as bytes with this scale and zero point."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, self.scale, self.zero, self.packed, self.weight_scales, _zeros(self), self.bias,
            scale, zero, torch.uint8, "gelu", [], "none",
        )  # fmt: skip
        return out

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's output added to `other`, in place."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            x, self.scale, self.zero, self.packed, self.weight_scales, _zeros(self), other, self.bias,
            1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        return out


def _zeros(layer: _Int8Linear) -> Tensor:
    return torch.zeros(len(layer.weight_scales), dtype=torch.int64)


class Int8Layer:
    """A layer whose four linear layers take bytes; sums, norms and attention stay in fp32."""

    def __init__(self, weights: LayerWeights, ranges: Ranges) -> None:
        w = self._w = weights
        dim = len(w.norm_in[0])
        self._out = _Int8Linear.make(w.out, *ranges["a"], alpha=0.5, margin=1.05)
        # Attention is linear in the values, so their weights can output the units of the next layer's bytes.
        bytes_of = 1 / (self._out.smooth * self._out.scale)
        weight, bias = w.qkv[0].clone(), w.qkv[1].clone()
        weight[2 * dim :] *= bytes_of[:, None]
        bias[2 * dim :] = bias[2 * dim :] * bytes_of + self._out.zero + 0.5
        self._qkv = _Int8Linear.make((weight, bias), *ranges["x"], alpha=0.8, margin=1.15)
        self._up = _Int8Linear.make(w.up, *ranges["y"], alpha=0.65, margin=1.05)
        self._norm_qkv, self._norm_up = self._qkv.norm(w.norm_in), self._up.norm(w.norm_mid)
        low, high = ranges["h"]
        large = high.topk(min(_FLOAT_CHANNELS, len(high) // 8)).indices
        self._up_large = w.up[0][large], w.up[1][large]
        self._down_large = w.down[0][:, large].T.contiguous()
        rest = w.down[0].clone()
        rest[:, large] = 0
        low, high = low.clone(), high.clone()
        high[large] = 0
        self._down = _Int8Linear.make((rest, w.down[1]), low, high, alpha=0, margin=1.05)

    def __call__(self, x: Tensor, shape: BatchLayout) -> Tensor:
        """A `Layer`."""
        states = self._qkv(_to_uint8(layer_norm(x, self._norm_qkv, shape)))
        a = _merge(_to_uint8(_attend(states, shape)))
        mid = self._out.add(a, layer_norm(x, self._w.norm_in, shape))
        h = self._up.gelu(_to_uint8(layer_norm(mid, self._norm_up, shape)), self._down.scale, self._down.zero)
        y = layer_norm(mid, self._w.norm_mid, shape)
        y.addmm_(F.gelu(F.linear(y, *self._up_large)), self._down_large)
        return self._down.add(h, y)


def _to_uint8(x: Tensor) -> Tensor:
    return x.clamp_(0, 255).to(torch.uint8)


def layer_norm(x: Tensor, norm: Pair, shape: BatchLayout) -> Tensor:
    """A layer norm of tokens `[tokens, dim]`."""
    return F.layer_norm(x, norm[0].shape, *norm, shape.eps)


def _attend(states: Tensor, shape: BatchLayout) -> Tensor:
    """Attention over queries, keys and values `[tokens, 3 * dim]` -> `[rows, heads, width, head_dim]`."""
    parts = states.view(shape.rows, shape.width, 3, shape.heads, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=shape.mask)


def _merge(a: Tensor) -> Tensor:
    """Concatenates heads: `[rows, heads, width, head_dim]` -> `[tokens, dim]`."""
    return a.transpose(1, 2).flatten(2).flatten(0, 1)


def layers_of(weights: dict[str, Tensor], count: int) -> tuple[list[LayerWeights], Pair]:
    """The layers, and the norm after the last one."""

    def pair(name: str) -> Pair:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    norm = pair("embeddings.LayerNorm")
    layers: list[LayerWeights] = []
    for number in range(count):
        at = f"encoder.layer.{number}"
        parts = [pair(f"{at}.attention.self.{name}") for name in ("query", "key", "value")]
        layers.append(
            LayerWeights(
                norm_in=norm,
                qkv=(torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])),
                out=pair(f"{at}.attention.output.dense"),
                norm_mid=pair(f"{at}.attention.output.LayerNorm"),
                up=pair(f"{at}.intermediate.dense"),
                down=pair(f"{at}.output.dense"),
            )
        )
        norm = pair(f"{at}.output.LayerNorm")
    return layers, norm
