"""The backbone: a frozen pre-trained encoder, loaded once a process and shared."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.utils._param_validation import StrOptions
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging

from prefixembed._embed.batching import Batch
from prefixembed._model.attention import Attend
from prefixembed._model.devices import resolve_device, resolve_dtype
from prefixembed._model.hook import ATTENTION, attending, register
from prefixembed._model.own_reading import own_pooling
from prefixembed._model.relative import RELATIVE, adopt
from prefixembed._utils.parameters import PATH, checked
from prefixembed._utils.warnings import warn
from prefixembed.prefix import Prefix

DECODERS = ("llama", "mistral", "qwen3")
SUPPORTED = (
    "albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet",
    "nomic_bert", "roberta", "xlm-roberta", *DECODERS,
)  # fmt: skip

# Position ids of these count from the padding token's id.
_OFFSET_POSITIONS = ("camembert", "mpnet", "roberta", "xlm-roberta")
# What a configuration says that does not change a vector, or that the loaded weights tell better.
_VOLATILE_CONFIG = (
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "output_past",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
_PROBES = ("Is it a test? Yes: don't panic!", "  Ünï¢ødé 中文 \U0001f600\t\n 3.14", "")

_loaded: dict[tuple[str, str | None, torch.dtype, torch.device], Backbone] = {}
_lock = threading.RLock()


def _new_lock() -> None:
    # Of a thread that was loading when the process forked, the child has the lock and no more.
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen encoder and its tokenizer; made by :func:`load_backbone`.

    It holds no state of its own beyond the weights: prefixes come with each call, so that
    threads share one backbone.

    Attributes
    ----------
    name : str
        Hub name or folder.
    revision : str or None
        Revision on the Hub.
    fingerprint : str
        Hexadecimal SHA-256 of weights, configuration and tokenizer: the same for the same
        files, whatever the device and dtype.
    model : transformers.PreTrainedModel
        In eval mode, without gradients, without a pooler.
    device : torch.device
        Where it is.
    dtype : torch.dtype
        What it computes in.
    layout : tuple of int
        Number of layers, number of heads (of keys and values), length of a head.
    n_features : int
        Length of a vector.
    max_length : int
        Longest text in tokens, special tokens included.
    pooling : str
        How it was made to give one vector a text: as ``modules.json`` of sentence-transformers
        has it, or else ``"last"`` of decoders and ``"mean"`` of others.

    See Also
    --------
    load_backbone : Makes one.
    release_backbones : Frees the memory.
    """

    name: str
    revision: str | None
    fingerprint: str
    model: Any
    tokenizer_json: str = field(repr=False)
    device: torch.device
    dtype: torch.dtype
    layout: tuple[int, int, int]
    n_features: int
    max_length: int
    pooling: str
    pad_id: int
    has_segments: bool
    _tokenizers: dict[tuple[int, int], Tokenizer] = field(default_factory=dict, repr=False)

    def tokenizer(self, max_length: int, overlap: int = 0) -> Tokenizer:
        """Give a tokenizer that cuts at a length.

        Parameters
        ----------
        max_length : int
            In tokens, special tokens included; of a pair the longer text is cut first.
        overlap : int, default=0
            How many tokens at the end of a window come again at the beginning of the next one,
            where what is cut off a text is to be read in further windows.

        Returns
        -------
        tokenizer : tokenizers.Tokenizer
            Safe to share among threads as long as nobody changes it.

        Raises
        ------
        ValueError
            If `max_length` is more than the backbone has positions for.
        """
        if not 8 <= max_length <= self.max_length:
            raise ValueError(
                f"max_length must lie between 8 and the {self.max_length} tokens that backbone "
                f"{self.name!r} takes, got {max_length}"
            )
        key = max_length, overlap
        if key not in self._tokenizers:
            tokenizer = Tokenizer.from_str(self.tokenizer_json)
            tokenizer.no_padding()
            tokenizer.enable_truncation(max_length, stride=overlap, strategy="longest_first")
            self._tokenizers[key] = tokenizer
        return self._tokenizers[key]

    def forward(
        self,
        batch: Batch,
        prefix: Attend | None = None,
        pooled_layers: int = 1,
        first_position: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the encoder once.

        Parameters
        ----------
        batch : Batch
            Padded on the right.
        prefix : Attend, default=None
            What every layer attends to beside the tokens.
        pooled_layers : int, default=1
            Number of last layers to average.
        first_position : int, default=0
            Position of the first token.

        Returns
        -------
        hidden : Tensor of shape (batch, position, feature)
            The last layer, in the backbone's dtype, or the mean over the last ones, in float32.
        mask : bool Tensor of shape (batch, position) or None
            The batch's mask, on the device.
        """
        inputs: dict[str, Any] = {"input_ids": self._send(batch.ids)}
        mask = None
        if batch.mask is not None:
            mask = self._send(batch.mask)
            inputs["attention_mask"] = mask
        if self.has_segments:
            inputs["token_type_ids"] = self._send(batch.type_ids)
        if first_position:
            start = first_position + _position_offset(self.model.config)
            stop = start + batch.ids.shape[1]
            inputs["position_ids"] = torch.arange(start, stop, device=self.device)[None]
        if self.model.config.model_type in DECODERS:
            inputs["use_cache"] = False  # of keys and values, for texts to come
        with attending(prefix):
            if pooled_layers == 1:
                return self.model(**inputs).last_hidden_state, mask
            output = self.model(**inputs, output_hidden_states=True)
        last = output.hidden_states[-pooled_layers:]
        return torch.stack(last).float().mean(dim=0), mask  # (batch, position, feature)

    def check_pooled_layers(self, pooled_layers: int) -> None:
        """Refuse to average more layers than there are, the embeddings not counted.

        Parameters
        ----------
        pooled_layers : int
            Number of last layers to average.

        Raises
        ------
        ValueError
            If there are fewer.
        """
        if pooled_layers > self.layout[0]:
            raise ValueError(
                f"pooled_layers must be at most the {self.layout[0]} layers of backbone "
                f"{self.name!r}, got {pooled_layers}"
            )

    def check_positions(self, first_position: int, max_length: int) -> None:
        """Refuse texts whose last token would lie behind the last position.

        Parameters
        ----------
        first_position : int
            Position of the first token.
        max_length : int
            Longest text in tokens.

        Raises
        ------
        ValueError
            If there are too few positions.
        """
        if first_position and first_position + max_length > self.max_length:
            raise ValueError(
                f"max_length must be at most {self.max_length - first_position} where the first "
                f"of {self.max_length} positions is {first_position}, got {max_length}"
            )

    def _send(self, array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def check(self, prefix: Prefix, name: str = "prefix") -> None:
        """Refuse a prefix that was learned on another backbone.

        Parameters
        ----------
        prefix : Prefix
            To be used with this backbone.
        name : str, default="prefix"
            What the message calls it.

        Raises
        ------
        ValueError
            If fingerprints or shapes differ.
        """
        if prefix.fingerprint != self.fingerprint:
            raise ValueError(
                f"{name} was learned on backbone {prefix.backbone!r} with fingerprint "
                f"{prefix.fingerprint[:12]}, but backbone {self.name!r} has fingerprint "
                f"{self.fingerprint[:12]}: weights, configuration or tokenizer differ"
            )
        if prefix.layout != self.layout or prefix.n_features != self.n_features:
            raise ValueError(
                f"{name} has (layers, heads, head_dim) {prefix.layout} and {prefix.n_features} "
                f"features, backbone {self.name!r} has {self.layout} and {self.n_features}"
            )


@checked(
    name_or_path=PATH,
    revision=[str, None],
    dtype=[StrOptions({"auto", "float32", "bfloat16", "float16"})],
    device=[str],
)
def load_backbone(
    name_or_path: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> Backbone:
    """Load a pre-trained encoder, or give the one that this process has already loaded.

    Parameters
    ----------
    name_or_path : str
        Hub name or folder.
    revision : str, default=None
        Branch, tag or commit on the Hub.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        What to compute in. ``"auto"`` takes bfloat16 where the hardware has it (CUDA compute
        capability 8 and up, CPUs with AVX512-BF16 or AMX) and float32 elsewhere.
    device : str, default="auto"
        ``"auto"`` takes CUDA, then MPS, then the CPU; else what :class:`torch.device` takes.

    Returns
    -------
    backbone : Backbone
        Frozen and in eval mode. The same object for the same arguments.

    Raises
    ------
    ValueError
        If the family, dtype or device is not supported, weights are missing from the
        checkpoint, or there is no tokenizer in Rust.
    OSError
        If there is no such folder and no such model on the Hub.

    Examples
    --------
    >>> from prefixembed import load_backbone
    >>> from prefixembed.tasks import demo_backbone
    >>> backbone = load_backbone(demo_backbone(), device="cpu")
    >>> backbone.layout, backbone.n_features
    ((6, 12, 32), 384)
    >>> backbone is load_backbone(demo_backbone(), device="cpu")
    True
    """
    where = resolve_device(device)
    numbers = resolve_dtype(dtype, where)
    name = os.fspath(name_or_path)
    key = (os.path.realpath(name) if os.path.isdir(name) else name, revision, numbers, where)
    with _lock:
        if key not in _loaded:
            _warn_of_company(where)
            _loaded[key] = read_backbone(name, revision, numbers, where)
        return _loaded[key]


@checked(name_or_path=[*PATH, None])
def release_backbones(name_or_path: str | None = None) -> int:
    """Let go of loaded backbones, so that their memory can be used for something else.

    Parameters
    ----------
    name_or_path : str, default=None
        Whose; all where None.

    Returns
    -------
    n_released : int
        How many there were. What is used again is loaded again.
    """
    with _lock:
        name = name_or_path
        if name is not None and os.path.isdir(name):
            name = os.path.realpath(name)
        keys = [key for key in _loaded if name is None or key[0] == name]
        for key in keys:
            del _loaded[key]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return len(keys)


def backbone_n_features(name_or_path: str, revision: str | None = None) -> int:
    """Tell the length of a backbone's vectors from its configuration alone."""
    with _naming(name_or_path):
        return int(AutoConfig.from_pretrained(name_or_path, revision=revision).hidden_size)


def _warn_of_company(device: torch.device) -> None:
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    if device.type != "cpu" and not several and multiprocessing.parent_process() is not None:
        warn(
            f"a worker process loads a backbone of its own on {device}, beside those of others: "
            "n_jobs=1 fills the device too, and workers of a search that was passed to fill_cache, "
            "with the path of a file as cache, load none"
        )


@torch.inference_mode(False)
def read_backbone(
    name: str, revision: str | None, dtype: torch.dtype, device: torch.device
) -> Backbone:
    """Load a backbone that is not shared with the rest of the process.

    Also in a caller's inference mode its weights are such that prefixes can be trained on them.
    """
    with _naming(name):
        raw_config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    family = raw_config.get("model_type")
    if family not in SUPPORTED or raw_config.get("is_decoder"):
        kind = f"a decoder of the {family!r} family" if family in SUPPORTED else f"{family!r}"
        raise ValueError(
            f"backbone {name!r} is {kind}, which is not supported; supported are models of the "
            f"families {', '.join(SUPPORTED)}"
        )
    register()
    with _naming(name), quiet_transformers():
        model, report = AutoModel.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32,
            attn_implementation="eager" if family in RELATIVE else ATTENTION,
            output_loading_info=True,
        )
        wrapper = AutoTokenizer.from_pretrained(name, revision=revision)
    if hasattr(model, "pooler"):
        # Unused, and newly drawn at random where a checkpoint has none.
        model.pooler = None
    missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}
    if missing or report["mismatched_keys"]:
        wrong = sorted(missing) or sorted(str(key) for key in report["mismatched_keys"])
        raise ValueError(
            f"the checkpoint of backbone {name!r} lacks {len(wrong)} of its weights, "
            f"for example {wrong[0]!r}"
        )
    tokenizer = getattr(wrapper, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"backbone {name!r} has no tokenizer in Rust (tokenizer.json)")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if not tokenizer.encode("").ids:
        raise ValueError(f"the tokenizer of backbone {name!r} adds no special tokens")

    adopt(model)
    config = model.config
    fingerprint = _fingerprint(model, raw_config, tokenizer)
    for parameter in model.parameters():
        # Parameters alone: frequencies of rotary positions are buffers that stay in float32.
        parameter.data = parameter.data.to(dtype)
    model.to(device).eval().requires_grad_(False)
    return Backbone(
        name=name,
        revision=revision,
        fingerprint=fingerprint,
        model=model,
        tokenizer_json=tokenizer.to_str(),
        device=device,
        dtype=dtype,
        layout=_layout(config),
        n_features=config.hidden_size,
        max_length=_max_length(config, wrapper.model_max_length),
        pooling=own_pooling(name, revision, "last" if family in DECODERS else "mean"),
        pad_id=_pad_id(config, wrapper),
        has_segments=(
            "token_type_ids" in wrapper.model_input_names
            and getattr(config, "type_vocab_size", 0) > 1
        ),
    )


def _layout(config: Any) -> tuple[int, int, int]:
    # ALBERT may have several layers in what it counts as one.
    n_layers = config.num_hidden_layers * getattr(config, "inner_group_num", 1)
    n_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    # Of keys and values, where several heads of queries share one.
    return n_layers, getattr(config, "num_key_value_heads", None) or n_heads, head_dim


def _max_length(config: Any, tokenizer_limit: int) -> int:
    positions = config.max_position_embeddings - _position_offset(config)
    return int(min(positions, tokenizer_limit))


def _position_offset(config: Any) -> int:
    # Where the positions of tokens begin: in the RoBERTa family behind that of padding.
    return config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0


def _pad_id(config: Any, wrapper: Any) -> int:
    for pad_id in (config.pad_token_id, wrapper.pad_token_id):
        if pad_id is not None:
            return int(pad_id)
    return 0


def _fingerprint(model: torch.nn.Module, raw_config: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Digest what decides vectors: weights, configuration and what the tokenizer does.

    Weights count in float32. The configuration is taken as its file has it, since classes of
    later transformers versions add fields; the tokenizer by vocabulary and behaviour, since
    serializations differ.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.contiguous().numpy()).cast("B"))
    config = {key: value for key, value in raw_config.items() if key not in _VOLATILE_CONFIG}
    probes = [tokenizer.encode(text).ids for text in _PROBES]
    probes.append(tokenizer.encode(_PROBES[0], _PROBES[1]).ids)
    vocabulary = sorted(tokenizer.get_vocab().items())
    digest.update(json.dumps([config, probes, vocabulary], sort_keys=True).encode())
    return digest.hexdigest()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"backbone {name!r} could not be loaded, as a folder or from the Hub: {error}"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from reporting and from drawing bars."""
    # Its report lists pooler and language-model head, which are not used; what is missing and
    # used is refused above.
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
