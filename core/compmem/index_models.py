"""The models of an index: loaded on first use, and compared with those that the index was made with."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from compmem.backbone import Backbone, chunk_ids
from compmem.config import STOCK_PRUNING, IndexConfig, KVPruning, RuntimeConfig
from compmem.encoder import LoadedEncoder, load_encoder
from compmem.errors import IncompatibleStoreError
from compmem.gate import BackboneGate, GateHead
from compmem.ingest.compressor import DenseCompressor, DocumentCompressor, KVCompressor
from compmem.kv_cache import KVCache
from compmem.locks import Lock
from compmem.naming import is_default_encoder, is_safe_name
from compmem.provenance import BACKBONE_KEY, ENCODER_KEY, check_backbone, check_encoder
from compmem.schema import Chunk, MemoryBlock
from compmem.store import JSON, KV_WRITTEN, Store

log = logging.getLogger(__name__)

_NO_BACKBONE: Final = "this index has dense memory, which needs no backbone: make one with IndexConfig(memory='kv')"


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
        encoder_named: bool = True,
        backbone_named: bool = True,
        allow_download: bool = False,
    ) -> None:
        """`encoder_named`, `backbone_named`: The caller chose the name, so a model of this name may be downloaded.

        Raises:
            ValueError: There is a backbone, and the index has dense memory.
        """
        if backbone is not None and config.memory != "kv":
            raise ValueError(_NO_BACKBONE)
        self.runtime = runtime
        self.allow_download = allow_download
        self._encoder_named = encoder_named
        self._backbone_named = backbone_named
        self._store = store
        self._config = config
        self._encoder = encoder
        self._backbone = backbone
        self._gate = gate
        self._kv_cache: KVCache | None = None
        self._encoder_checked = self._backbone_checked = False
        self._provenance: dict[str, JSON] = {}
        self._missing_gate_logged = False
        self._guard = Lock()

    def __reduce__(self) -> tuple[Callable[..., "IndexModels"], tuple[Any, ...]]:
        """In another process: the same models without a store, loaded there when they are first needed.

        Raises:
            IncompatibleStoreError: The index names a folder that is another one in each working folder.
        """
        self._check_name("encoder", self._config.encoder, self._encoder_named)
        self._check_name("backbone", self._config.backbone, self._backbone_named)
        made = partial(
            IndexModels, None, self._config, encoder=None, backbone=None, gate=None, runtime=self.runtime,
            encoder_named=self._encoder_named, backbone_named=self._backbone_named, allow_download=self.allow_download,
        )  # fmt: skip
        return made, ()

    @property
    def encoder(self) -> LoadedEncoder:
        """The encoder.

        Raises:
            ValueError: The index was made without an encoder.
            IncompatibleStoreError: Its vectors differ from those of the encoder that the index was made with.
        """
        with self._guard:
            if self._encoder is None:
                if self._config.encoder is None:
                    raise ValueError("this index was made with encoder=None, so it has no encoder")
                self._check_name("encoder", self._config.encoder, self._encoder_named)
                self._encoder = load_encoder(
                    self._config.encoder,
                    device=self.runtime.device,
                    dtype=self.runtime.dtype,
                    allow_download=self._encoder_named or self.allow_download,
                )
            self._check_encoder(self._encoder)
            return self._encoder

    @property
    def backbone(self) -> Backbone:
        """The backbone.

        Raises:
            ValueError: The index has dense memory, or the device is not available.
            CheckpointError: It cannot be loaded.
            IncompatibleStoreError: Its weights differ from those that the index was made with.
        """
        with self._guard:
            if self._config.memory != "kv" or self._config.backbone is None:
                raise ValueError(_NO_BACKBONE)
            if self._backbone is None:
                self._check_name("backbone", self._config.backbone, self._backbone_named)
                self._backbone = Backbone.load(
                    self._config.backbone,
                    device=self.runtime.device,
                    dtype=None if self.runtime.dtype == "int8" else self.runtime.dtype,
                    allow_download=self.allow_download or (None if self._backbone_named else False),
                    base=self.runtime.backbone_base,
                )
                memory = self._backbone.memory
                if memory.trained and memory.ratio != self._ratio(self._backbone):
                    log.warning(
                        "%r compresses at ratio %d by default, this index at %d",
                        self._config.backbone, memory.ratio, self._ratio(self._backbone),
                    )  # fmt: skip
            self._check_backbone(self._backbone)
            return self._backbone

    @property
    def gate(self) -> GateHead:
        """The dense gate.

        Raises:
            CheckpointError: The file named in the settings is not a gate.
        """
        with self._guard:
            if self._gate is None:
                self._gate = GateHead.load() if self.runtime.gate is None else GateHead.load(Path(self.runtime.gate))
            return self._gate

    @property
    def current_gate(self) -> GateHead | None:
        """The dense gate, if one was given or has been loaded."""
        return self._gate

    def use_gate(self, gate: GateHead | None) -> None:
        """Use this dense gate; None: the one of the settings of this process, else the one that ships."""
        self._gate = gate

    @property
    def kv_cache(self) -> KVCache | None:
        """The cache of KV blocks on the backbone's device; None for dense memory."""
        if self._config.memory != "kv":
            return None
        with self._guard:
            if self._kv_cache is None:
                weight = self.backbone.decoder.embed_tokens.weight
                self._kv_cache = KVCache(weight.device, weight.dtype, budget=self.runtime.kv_cache_bytes)
            return self._kv_cache

    @property
    def full_chunk_tokens(self) -> int | None:
        """Memory tokens of a full chunk, for checkpoints whose prompts always follow a full chunk; else None."""
        if self.backbone.memory.positions == "rotated":
            return None
        return self._config.chunk_tokens // self._ratio(self.backbone)

    def backbone_gate(self, question: str) -> BackboneGate | None:
        """The gate on the backbone for a question if it is trained; otherwise the gate used instead is logged once."""
        if self._config.memory != "kv":
            return None
        if self.backbone.has_gate:
            return BackboneGate(self.backbone, question, behind=self.full_chunk_tokens)
        with self._guard:
            logged, self._missing_gate_logged = self._missing_gate_logged, True
        if not logged:
            instead = "the dense gate is used" if self._config.encoder else "every block is read, in document order"
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
            assert dense is not None, "dense memory needs an encoder"
            return dense.compress(chunks)
        with torch.inference_mode():
            backbone = self.backbone
            how = (self._ratio(backbone), dense, self._pruning(backbone), self._window(backbone))
            return KVCompressor(backbone, *how).compress(chunks)

    def load_checked(self, check: bool | None) -> tuple[LoadedEncoder | None, Backbone | None]:
        """Encoder and backbone as far as they are loaded, tried on a short text if `check` is true.

        With None, an encoder that is named and not the default one is loaded. Raises what loading models and
        `Backbone.compress` raise.
        """
        name = self._config.encoder
        if check:
            self.compress([Chunk(text="text", sentences=((0, 4),))])
        elif check is None and isinstance(name, str) and not is_default_encoder(name):
            return self.encoder, self._backbone
        return self._encoder, self._backbone

    def document_compressor(self) -> DocumentCompressor:
        """What turns documents into blocks with these models."""
        return DocumentCompressor(self._config.chunk_tokens, self.count_tokens, self.compress, self.provenance)

    def provenance(self, chunks: Sequence[Chunk]) -> dict[str, JSON]:
        """Which models make the blocks of these chunks, and how much a backbone reads; for `record_provenance`."""
        with self._guard:
            if not self._provenance:
                if self._config.encoder is not None:
                    self._provenance[ENCODER_KEY] = [round(float(x), 5) for x in self.encoder.fingerprint()]
                if self._config.memory == "kv":
                    self._provenance[BACKBONE_KEY] = {"name": self._config.backbone, **self._kv_settings(self.backbone)}
        if self._config.memory != "kv":
            return dict(self._provenance)
        tokens = sum(len(chunk_ids(self.backbone, chunk)) for chunk in chunks)
        return {**self._provenance, KV_WRITTEN: {"tokens": tokens, "blocks": len(chunks)}}

    def _ratio(self, backbone: Backbone) -> int:
        return self._config.ratio or backbone.memory.ratio

    def _pruning(self, backbone: Backbone) -> KVPruning:
        memory = backbone.memory
        own = memory.pruning if memory.trained or memory.pruning == "kvzap" else STOCK_PRUNING
        return self._config.kv_pruning or own

    def _window(self, backbone: Backbone) -> int:
        window = self._config.kv_window
        if window is not None and backbone.memory.inserted:
            raise ValueError(f"kv_window={window}: memory with inserted tokens compresses each chunk alone")
        return window or 0

    def _kv_settings(self, backbone: Backbone) -> dict[str, JSON]:
        """What decides on the KV states that this index makes with a backbone."""
        pruning = self._pruning(backbone)
        return {"fingerprint": backbone.fingerprint(pruning), "ratio": self._ratio(backbone), "pruning": pruning}

    def _check_backbone(self, backbone: Backbone) -> None:
        if self._store is not None and not self._backbone_checked:
            name = str(backbone.tokenizer.name_or_path) or str(self._config.backbone)
            check_backbone(self._store, self._kv_settings(backbone), name)
            self._backbone_checked = True

    def _check_name(self, part: str, name: object, named: bool) -> None:
        """Refuse a relative folder name read from the index: it would depend on the working folder."""
        given = named or self.allow_download
        if self._store is not None and not given and isinstance(name, str) and not is_safe_name(name):
            raise IncompatibleStoreError(
                f"{str(self._store.path)!r} names the folder {name!r} as its {part}, which is not an absolute path on "
                f"this machine: open the index with {part}={name!r} if that folder is meant"
            )

    def _check_encoder(self, encoder: LoadedEncoder) -> None:
        if self._store is not None and not self._encoder_checked:
            check_encoder(self._store, encoder.fingerprint, encoder.name)
            self._encoder_checked = True
