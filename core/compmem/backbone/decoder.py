"""The stock model's layers, run with attention over a custom context.

A stock decoder layer has one kind of past: its cache. Compressing and reading need others: keys before rotation, blocks
loaded from a store, positions with any start. So the stock modules (norms, projections, feed-forward) are called
unchanged, and a `Context` between the projections keeps the past, rotates, masks and attends. The stock model is not
modified: it can still be saved, loaded and used for generation by itself.
"""

import copy
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter
from torch.utils.checkpoint import checkpoint

from compmem.backbone.adapters import LoRA
from compmem.backbone.config import AdapterConfig, Linear, MemoryConfig, Projection, Role


class Context(Protocol):
    """The past of the tokens that are run, and how they attend to it."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        """Attention of one layer `[rows, queries, heads * head_dim]`, from states before rotation.

        None if the context only needs the states, and the layer's output is not used.

        Args:
            layer: Number of the layer.
            query: `[rows, heads, queries, head_dim]`.
            key: `[rows, kv_heads, queries, head_dim]`.
            value: As `key`.
            scale: Factor of the scores.
            dropout: Share of attention weights dropped.
        """
        ...


class Layer(nn.Module):
    """One stock decoder layer, with the memory tokens' own projections and the adapters of each role.

    It is the unit for sharding and for gradient checkpointing.
    """

    def __init__(self, stock: Any, index: int, family: str) -> None:
        super().__init__()
        self.stock = stock
        self.index = index
        self.own = nn.ModuleDict()
        self.adapters = nn.ModuleDict()
        self._has_qk_norm = family == "qwen3"

    def linear(self, name: Linear) -> nn.Linear:
        """The stock linear layer of this name."""
        owner = self.stock.self_attn if name in ("q", "k", "v", "o") else self.stock.mlp
        module: nn.Linear = getattr(owner, f"{name}_proj")
        return module

    def add_memory_projections(self, names: tuple[Projection, ...]) -> None:
        """Add copies of these projections for memory tokens."""
        for name in names:
            self.own[name] = copy.deepcopy(self.linear(name))

    def add_adapter(self, role: Role, config: AdapterConfig) -> None:
        """Add an adapter for a role; it changes nothing until it is trained."""
        for name in config.targets:
            self.adapters[f"{role}_{name}"] = LoRA(self.linear(name), config)

    def forward(self, x: Tensor, context: Context, memory_rows: Tensor | None, role: Role | None) -> Tensor:
        """The layer's output `[rows, tokens, hidden]`.

        Args:
            x: `[rows, tokens, hidden]`.
            context: What the tokens attend to.
            memory_rows: Indices of the memory tokens in `x.flatten(0, 1)`.
            role: The role whose adapter is added for every token.
        """
        attn, mlp = self.stock.self_attn, self.stock.mlp
        shape = (*x.shape[:2], -1, attn.head_dim)
        normed = self.stock.input_layernorm(x)
        query = self._project("q", attn.q_proj, normed, memory_rows, role).view(shape)
        key = self._project("k", attn.k_proj, normed, memory_rows, role).view(shape)
        value = self._project("v", attn.v_proj, normed, memory_rows, role).view(shape)
        if self._has_qk_norm:
            query, key = attn.q_norm(query), attn.k_norm(key)
        attended = context.attend(
            self.index, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
            scale=attn.scaling, dropout=attn.attention_dropout if self.training else 0.0,
        )  # fmt: skip
        if attended is None:
            return x
        x = x + self._project("o", attn.o_proj, attended, memory_rows, role)
        normed = self.stock.post_attention_layernorm(x)
        gate = mlp.act_fn(self._project("gate", mlp.gate_proj, normed, memory_rows, role))
        activated = gate * self._project("up", mlp.up_proj, normed, memory_rows, role)
        return x + self._project("down", mlp.down_proj, activated, memory_rows, role)

    def _project(
        self, name: Linear, stock: nn.Linear, x: Tensor, memory_rows: Tensor | None, role: Role | None
    ) -> Tensor:
        out: Tensor = stock(x)
        adapter = _get(self.adapters, f"{role}_{name}") if self.adapters else None
        if adapter is not None:
            out = out + adapter(x)
        if memory_rows is None:
            return out
        own, memory_adapter = _get(self.own, name), _get(self.adapters, f"memory_{name}")
        if own is None and memory_adapter is None:
            return out
        flat = out.flatten(0, 1)
        memory_inputs = x.flatten(0, 1).index_select(0, memory_rows)
        memory_outputs: Tensor = flat.index_select(0, memory_rows) if own is None else own(memory_inputs)
        if memory_adapter is not None:
            memory_outputs = memory_outputs + memory_adapter(memory_inputs)
        return flat.index_copy(0, memory_rows, memory_outputs).view_as(out)


class Decoder(nn.Module):
    """A stock causal LM's layers with memory tokens, adapters per role and a gate head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embed_tokens: nn.Embedding = model.model.embed_tokens
        family = model.config.model_type
        self._layers = [Layer(stock, index, family) for index, stock in enumerate(model.model.layers)]
        self.layers = nn.ModuleList(self._layers)
        self.norm: nn.Module = model.model.norm
        self.lm_head: nn.Linear = model.lm_head
        self.memory_embedding: Parameter | None = None
        self.gate_head: nn.Linear | None = None
        self.importance: Parameter | None = None
        """Weights that predict the importance of each KV state; see `compmem.backbone.kvzap`."""
        attn = model.model.layers[0].self_attn
        self.kv_shape: tuple[int, int, int] = (
            len(self._layers),
            attn.k_proj.out_features // attn.head_dim,
            attn.head_dim,
        )
        """Layers, KV heads and head width."""
        self.role: Role | None = None
        """The role of tokens that are run without one; see `as_role`."""
        self.checkpointing = False
        """Gradient checkpointing: run the layers again in the backward pass instead of storing activations."""

    def add_memory(self, config: MemoryConfig, token: int) -> None:
        """Add an embedding for memory tokens (a copy of that of `token`) and their own projections (copies too)."""
        if not config.inserted:
            return
        self.memory_embedding = Parameter(self.embed_tokens.weight[token : token + 1].detach().clone())
        for layer in self._layers:
            layer.add_memory_projections(config.own)

    def add_adapter(self, role: Role, config: AdapterConfig) -> None:
        """Add an adapter for a role; it changes nothing until it is trained."""
        for layer in self._layers:
            layer.add_adapter(role, config)

    def as_role(self, role: Role | None) -> "Decoder":
        """The same layers and parameters, with the adapter of this role on tokens that are run without one."""
        view = copy.copy(self)
        view.role = role
        return view

    def add_gate(self) -> None:
        """Add a linear gate head; it scores every block 0.5 until it is trained."""
        weight = self.embed_tokens.weight
        self.gate_head = nn.Linear(weight.shape[1], 1, dtype=weight.dtype, device=weight.device)
        nn.init.zeros_(self.gate_head.weight)
        nn.init.zeros_(self.gate_head.bias)

    def set_importance(self, weights: Tensor) -> None:
        """Add or replace the weights that predict importance, in float32 whatever the others have.

        Raises:
            ValueError: They have another shape than `[layers, kv_heads, features + 1]`, or are not finite.
        """
        wanted = (*self.kv_shape[:2], self._layers[0].linear("q").out_features + 1)
        if weights.shape != wanted:
            raise ValueError(f"importance has the shape {tuple(weights.shape)}, not {wanted}")
        if not weights.isfinite().all():
            raise ValueError("importance has weights that are not finite")
        kept = weights.detach().to(self.embed_tokens.weight.device, torch.float32, copy=True)
        self.importance = Parameter(kept, requires_grad=False)

    def added(self) -> dict[str, Parameter]:
        """The parameters that are not in the stock model, by name."""
        stock = ("embed_tokens.", "norm.", "lm_head.")
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if not name.startswith(stock) and ".stock." not in name
        }

    def parameters_of(self, part: Literal["base", "memory", "reasoner", "gate"]) -> dict[str, Parameter]:
        """The parameters of one part, by name."""
        added = self.added()
        if part == "base":
            return {name: p for name, p in self.named_parameters() if name not in added}
        marks = {
            "memory": ("memory_embedding", ".own.", ".adapters.memory_"),
            "reasoner": (".adapters.reasoner_",),
            "gate": (".adapters.gate_", "gate_head."),
        }[part]
        return {name: p for name, p in added.items() if any(mark in name for mark in marks)}

    def embed(self, ids: Tensor, memory_rows: Tensor | None = None) -> Tensor:
        """Embeddings `[rows, tokens, hidden]` of ids; at `memory_rows` of the flat batch, those of a memory token."""
        x: Tensor = self.embed_tokens(ids)
        if memory_rows is None:
            return x
        assert self.memory_embedding is not None
        memory = self.memory_embedding.expand(len(memory_rows), -1).to(x.dtype)
        return x.flatten(0, 1).index_copy(0, memory_rows, memory).view_as(x)

    def forward(
        self, ids: Tensor, context: Context, *, memory_rows: Tensor | None = None, role: Role | None = None
    ) -> Tensor:
        """Hidden states `[rows, tokens, hidden]` of ids `[rows, tokens]`, the input of the LM head."""
        x, role = self.embed(ids, memory_rows), role or self.role
        for layer in self.layers:
            if self.checkpointing and x.requires_grad:
                x = checkpoint(layer, x, context, memory_rows, role, use_reentrant=False)
            else:
                x = layer(x, context, memory_rows, role)
        hidden: Tensor = self.norm(x)
        return hidden


def _get(modules: nn.ModuleDict, key: str) -> nn.Module | None:
    return modules[key] if key in modules else None  # noqa: SIM401 - a ModuleDict has no get
