"""Load a backbone's files: weights, configuration, tokenizer, and their fingerprint."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import cached_file, logging

from prefixembed._model.devices import seeded
from prefixembed._model.families import SUPPORTED, default_pooling, longest_text
from prefixembed._model.folder import naming
from prefixembed._model.hook import ATTENTION, hook_feed_forward, register
from prefixembed._model.modes import own_modes
from prefixembed._model.own_reading import own_reading
from prefixembed._model.relative import RELATIVE, patch_relative_attention
from prefixembed._model.weights import (
    convert_weights,
    digest_weights,
    fetch_weights,
    loading_dtype,
    weights_key,
)
from prefixembed.reading import Reading

# Fields of a configuration that do not change a vector, or that the loaded weights already
# determine.
_VOLATILE_CONFIG = (
    "_name_or_path", "architectures", "attn_implementation", "dtype", "gradient_checkpointing",
    "id2label", "label2id", "output_past", "problem_type", "torch_dtype", "transformers_version",
    "use_cache",
)  # fmt: skip
_PROBES = ("Is it a test? Yes: don't panic!", "  Ünï¢ødé 中文 \U0001f600\t\n 3.14", "")


@dataclass(frozen=True)
class BackboneFiles:
    """What the files of a backbone hold."""

    model: Any  # transformers.PreTrainedModel, in eval mode, without gradients or pooler
    tokenizer: Tokenizer  # without padding and truncation
    wrapper: Any  # the tokenizer as transformers loads it
    fingerprint: str  # hexadecimal SHA-256 of weights, configuration and tokenizer


@own_modes(gradients=False)  # so that prefixes can be trained whatever mode the caller is in
def load_files(
    name: str, revision: str | None, dtype: torch.dtype, device: torch.device
) -> BackboneFiles:
    """Load a backbone that nothing else shares."""
    with naming(name, revision), quiet_transformers():
        raw_config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    family = raw_config.get("model_type")
    if family not in SUPPORTED or raw_config.get("is_decoder"):
        kind = f"a decoder of the {family!r} family" if family in SUPPORTED else f"{family!r}"
        raise ValueError(
            f"backbone {name!r} is {kind}, which is not supported; supported are models of the "
            f"families {', '.join(SUPPORTED)}"
        )
    register()
    with naming(name, revision), quiet_transformers():
        wrapper = AutoTokenizer.from_pretrained(name, revision=revision)
        files = fetch_weights(name, revision)
        stored, key = loading_dtype(files), weights_key(files, raw_config)
        # Seeded, since a pooler that the checkpoint does not have is drawn at random.
        with _one_model_at_a_time, seeded(torch.device("cpu"), 0):
            model, report = AutoModel.from_pretrained(
                name,
                revision=revision,
                dtype=stored,
                attn_implementation="eager" if family in RELATIVE else ATTENTION,
                output_loading_info=True,
                local_files_only=True,
            )
    if hasattr(model, "pooler"):
        # It is not used, and randomly initialized where a checkpoint has none.
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

    patch_relative_attention(model)
    hook_feed_forward(model, family)
    unchanged = files and key == weights_key(files, raw_config)
    weights = digest_weights(model, key if unchanged else None)
    fingerprint = _fingerprint(weights, raw_config, tokenizer)
    convert_weights(model, dtype, device)
    model.config.dtype = dtype
    model.eval().requires_grad_(False)
    return BackboneFiles(model, tokenizer, wrapper, fingerprint)


def load_own_reading(name: str, revision: str | None) -> tuple[int, Reading]:
    """Return the number of features and the own reading, without loading weights."""
    limit = None
    with naming(name, revision):
        config = AutoConfig.from_pretrained(name, revision=revision)
        path = cached_file(
            name, "tokenizer_config.json", revision=revision,
            _raise_exceptions_for_missing_entries=False,
        )  # fmt: skip
        if path is not None:
            with open(path, encoding="utf-8") as file:
                limit = json.load(file).get("model_max_length")
    longest = longest_text(config, VERY_LARGE_INTEGER if limit is None else limit)
    pooling = default_pooling(config.model_type)
    return int(config.hidden_size), own_reading(name, revision, pooling, longest)


def _fingerprint(weights: Any, raw_config: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Digest what decides vectors: weights, configuration, and the tokenizer's behaviour.

    The configuration is taken from its file, since classes of later transformers versions add
    fields. The tokenizer counts by vocabulary and behaviour, since serializations differ.
    """
    config = {key: value for key, value in raw_config.items() if key not in _VOLATILE_CONFIG}
    probes = [tokenizer.encode(text).ids for text in _PROBES]
    probes.append(tokenizer.encode(_PROBES[0], _PROBES[1]).ids)
    vocabulary = sorted(tokenizer.get_vocab().items())
    weights.update(json.dumps([config, probes, vocabulary], sort_keys=True).encode())
    digest: str = weights.hexdigest()
    return digest


# How many threads want transformers to be quiet, and what it was like before.
_n_quiet, _before = 0, (0, True)
_quiet_lock = threading.Lock()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the reports and progress bars of transformers."""
    # Its report lists the pooler and the language-model head, which are not used. Weights that
    # are used and missing are refused by load_files.
    global _n_quiet, _before
    with _quiet_lock:
        _n_quiet += 1
        if _n_quiet == 1:
            _before = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()
            logging.disable_progress_bar()
    try:
        yield
    finally:
        with _quiet_lock:
            _n_quiet -= 1
            if not _n_quiet:
                _restore_logging()


def _restore_logging() -> None:
    verbosity, bar = _before
    logging.set_verbosity(verbosity)
    if bar:
        logging.enable_progress_bar()


def _in_child() -> None:
    # The threads that wanted quiet stay with the parent.
    global _n_quiet, _quiet_lock
    _quiet_lock = threading.Lock()
    _one_model_at_a_time.release()
    if _n_quiet:
        _n_quiet = 0
        _restore_logging()


# While transformers builds a model, functions of torch are replaced for the whole process: by one
# thread at a time, and not while the process forks, since a child would keep the replacements.
# Nothing is downloaded then, so that nobody waits for a network.
_one_model_at_a_time = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_one_model_at_a_time.acquire,
        after_in_parent=_one_model_at_a_time.release,
        after_in_child=_in_child,
    )
