"""The models behind an index: loaded when they are first needed, compared with those that made it."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from compmem.backbone import Backbone, chunk_ids
from compmem.config import IndexConfig, RuntimeConfig
from compmem.encoder import LoadedEncoder, load_encoder
from compmem.errors import IncompatibleStoreError
from compmem.gate import BackboneGate, GateHead
from compmem.ingest.compressor import DenseCompressor, KVCompressor
from compmem.kv_cache import KVCache
from compmem.locks import Lock
from compmem.naming import is_plain
from compmem.schema import Chunk, MemoryBlock
from compmem.store import KV_WRITTEN, Store

log = logging.getLogger(__name__)

SAME_ENCODER = 0.99
"""Cosine of the probe's vectors from which two encoders count as one: another device's rounding passes."""

ENCODER, BACKBONE = "encoder fingerprint", "backbone"
"""What is kept in the store about the models that made it."""


class IndexModels:
    """Encoder, backbone and gates of one index; any number of threads may use them."""

    def __init__(
        self,
        store: Store | None,
        config: IndexConfig,
        *,
        encoder: LoadedEncoder | None,
        backbone: Backbone | None,
        gate: GateHead | None,
        runtime: RuntimeConfig,
        fetch_encoder: bool = True,
        fetch_backbone: bool | None = None,
    ) -> None:
        self.runtime = runtime
        self._fetch_encoder = fetch_encoder
        self._fetch_backbone = fetch_backbone
        self._store = store
        self._config = config
        self._encoder = encoder
        self._backbone = backbone
        self._gate = gate
        self._resident: KVCache | None = None
        self._checked: set[int] = set()
        self._told = False
        self._guard = Lock()

    @property
    def encoder(self) -> LoadedEncoder:
        """The encoder.

        Raises:
            ValueError: The index was made without one.
            IncompatibleStoreError: It gives other vectors than the one that made the index.
        """
        with self._guard:
            if self._encoder is None:
                if self._config.encoder is None:
                    raise ValueError("this index was made with encoder=None, so it has no encoder")
                if not self._fetch_encoder:
                    self._check_name("encoder", self._config.encoder)
                self._encoder = load_encoder(
                    self._config.encoder,
                    device=self.runtime.device,
                    dtype=self.runtime.dtype,
                    allow_download=self._fetch_encoder,
                )
            self._check_encoder(self._encoder)
            return self._encoder

    @property
    def backbone(self) -> Backbone:
        """The backbone.

        Raises:
            ValueError: The index holds dense memory, or the device is not there.
            CheckpointError: It cannot be loaded.
            IncompatibleStoreError: It has other weights than the one that made the index.
        """
        with self._guard:
            if self._config.memory != "kv" or self._config.backbone is None:
                raise ValueError("this index holds dense memory, which has no backbone: make one with memory='kv'")
            if self._backbone is None:
                if self._fetch_backbone is False:
                    self._check_name("backbone", self._config.backbone)
                self._backbone = Backbone.load(
                    self._config.backbone,
                    device=self.runtime.device,
                    dtype=self.runtime.dtype,
                    allow_download=self._fetch_backbone,
                )
                memory = self._backbone.memory
                if memory.trained and memory.ratio != self._ratio(self._backbone):
                    log.warning(
                        "%r compresses at ratio %d by itself, this index at %d",
                        self._config.backbone, memory.ratio, self._ratio(self._backbone),
                    )  # fmt: skip
            self.check_backbone(self._backbone)
            return self._backbone

    @property
    def gate(self) -> GateHead:
        """The dense gate.

        Raises:
            CheckpointError: The file that the settings name is no gate.
        """
        with self._guard:
            if self._gate is None:
                self._gate = GateHead.load() if self.runtime.gate is None else GateHead.load(Path(self.runtime.gate))
            return self._gate

    @property
    def given_gate(self) -> GateHead | None:
        """The dense gate where one was given or is loaded."""
        return self._gate

    def use_gate(self, gate: GateHead | None) -> None:
        """Take this dense gate; None: the one that is shipped."""
        self._gate = gate

    @property
    def kv_cache(self) -> KVCache | None:
        """The KV blocks on the backbone's device; None for dense memory."""
        if self._config.memory != "kv":
            return None
        with self._guard:
            if self._resident is None:
                weight = self.backbone.decoder.embed_tokens.weight
                self._resident = KVCache(weight.device, weight.dtype, budget=self.runtime.kv_cache_bytes)
            return self._resident

    @property
    def whole(self) -> int | None:
        """Memory tokens of a whole chunk, where prompts stand behind so many also if a block has fewer."""
        if self.backbone.memory.positions == "rotated":
            return None
        return self._config.chunk_tokens // self._ratio(self.backbone)

    def latent_gate(self, question: str) -> BackboneGate | None:
        """The gate on the backbone for a question, where it is trained; what serves in its place is told once."""
        if self._config.memory != "kv":
            return None
        if self.backbone.has_gate:
            return BackboneGate(self.backbone, question, behind=self.whole)
        with self._guard:
            told, self._told = self._told, True
        if not told:
            instead = "the dense gate serves" if self._config.encoder else "every block is read, in document order"
            log.info("the backbone %r has no trained gate: %s", self._config.backbone, instead)
        return None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text: by the backbone's tokenizer for KV memory, else by the encoder's."""
        if self._config.memory == "kv":
            return [len(self.backbone.encode(text)) for text in texts]
        return self.encoder.count_tokens(texts)

    def compress(self, chunks: Sequence[Chunk]) -> list[MemoryBlock]:
        """The chunks' blocks, in order."""
        dense = None if self._config.encoder is None else DenseCompressor(self.encoder)
        if self._config.memory == "dense":
            assert dense is not None, "dense memory is made by an encoder"
            return dense.compress(chunks)
        with torch.inference_mode():
            return KVCompressor(self.backbone, self._ratio(self.backbone), dense).compress(chunks)

    def record(self, chunks: Sequence[Chunk]) -> None:
        """Writes into the store which models made the blocks of these chunks; called in the transaction of `add`."""
        assert self._store is not None, "only blocks of a store are recorded"
        if self._config.encoder is not None and self._store.get_meta(ENCODER) is None:
            self._store.put_meta(ENCODER, [round(float(x), 5) for x in self.encoder.fingerprint()])
        if self._config.memory == "kv":
            if self._store.get_meta(BACKBONE) is None:
                made = {"fingerprint": self.backbone.fingerprint(), "ratio": self._ratio(self.backbone)}
                self._store.put_meta(BACKBONE, {"name": self._config.backbone, **made})
            self._count_source(chunks)

    @property
    def _kv_store(self) -> Store:
        assert self._store is not None, "KV memory lies in a store"
        return self._store

    def _ratio(self, backbone: Backbone) -> int:
        return self._config.ratio or backbone.memory.ratio

    def _count_source(self, chunks: Sequence[Chunk]) -> None:
        kept = self._kv_store.get_meta(KV_WRITTEN)
        whole = isinstance(kept, dict) and all(isinstance(kept.get(name), int) for name in ("tokens", "blocks"))
        before = kept if isinstance(kept, dict) and whole else {}
        tokens = sum(len(chunk_ids(self.backbone, chunk)) for chunk in chunks)
        self._kv_store.put_meta(
            KV_WRITTEN,
            {"tokens": int(before.get("tokens", 0)) + tokens, "blocks": int(before.get("blocks", 0)) + len(chunks)},
        )

    def check_backbone(self, backbone: Backbone) -> None:
        """Compare a backbone with the one that made the index, once.

        Raises:
            IncompatibleStoreError: It has other weights, other memory settings or another ratio.
        """
        if id(backbone) in self._checked:
            return
        kept = self._kv_store.get_meta(BACKBONE)
        if kept is not None:
            name, made = (kept.get("name"), kept.get("fingerprint")) if isinstance(kept, dict) else (None, None)
            if made != (here := backbone.fingerprint()):
                given = str(backbone.tokenizer.name_or_path) or self._config.backbone
                raise IncompatibleStoreError(
                    f"{str(self._kv_store.path)!r} was made with the backbone {name!r} ({made}), not with {given!r} "
                    f"({here}): weights or memory settings differ"
                )
            if isinstance(kept, dict) and kept.get("ratio") != self._ratio(backbone):
                raise IncompatibleStoreError(
                    f"{str(self._kv_store.path)!r} was made with ratio={kept.get('ratio')!r}, and the backbone "
                    f"{name!r} compresses at ratio={self._ratio(backbone)!r} now"
                )
        self._checked.add(id(backbone))

    def _check_name(self, part: str, name: object) -> None:
        """Refuse a name read from the index that stands for another folder in each working folder."""
        if self._store is not None and isinstance(name, str) and not is_plain(name):
            raise IncompatibleStoreError(
                f"{str(self._store.path)!r} names the folder {name!r} as its {part}, which is not an absolute path on "
                f"this machine: open the index with {part}={name!r} if that folder is meant"
            )

    def _check_encoder(self, encoder: LoadedEncoder) -> None:
        if self._store is None or id(encoder) in self._checked:
            return
        kept = self._store.get_meta(ENCODER)
        if kept is not None:
            here = encoder.fingerprint()
            vector = kept if isinstance(kept, list) and all(isinstance(x, int | float) for x in kept) else []
            if len(vector) != len(here) or not float(np.dot(vector, here)) >= SAME_ENCODER:
                raise IncompatibleStoreError(
                    f"{str(self._store.path)!r} was made with other weights than the encoder {encoder.name!r} has "
                    "here: their vectors of the probe text differ"
                )
        self._checked.add(id(encoder))
