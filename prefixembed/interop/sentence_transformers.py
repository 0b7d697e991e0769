"""sentence-transformers: the module that saved models name in ``modules.json``.

The path ``prefixembed.interop.sentence_transformers.PrefixModule`` is part of the format of those
files. This file imports the library; :func:`prefixembed.interop.to_sentence_transformer` imports
this file when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from sklearn.base import clone
from torch import Tensor
from transformers import AutoTokenizer

from prefixembed._embed.batches import pad_batch
from prefixembed._embed.encoding import check_finite
from prefixembed._embed.texts import Text, check_texts, is_pairs
from prefixembed._embed.tokens import tokenize
from prefixembed._embed.truncation import report_truncated
from prefixembed._files.places import shared_name
from prefixembed._model.batch import Batch
from prefixembed._model.devices import resolve_device, resolve_dtype
from prefixembed._model.extension import Extension
from prefixembed._model.pooling import pool
from prefixembed.backbone import Backbone
from prefixembed.bank import PrefixBank

if TYPE_CHECKING:
    from typing_extensions import Self


class PrefixModule(InputModule):
    """Encode texts with a bank, as the first module of a sentence-transformers model.

    The bank is cloned. The backbone is not a submodule: the process shares it, so moving or casting
    the model must not change it. Instead, one empty parameter is moved and cast with the model; the
    backbone is then loaded on its device and in its dtype.
    """

    save_in_root = True

    def __init__(self, bank: PrefixBank) -> None:
        super().__init__()
        if bank.on_truncate == "window":
            raise ValueError(
                "a sentence-transformers model reads one sequence per text, got "
                "on_truncate='window'"
            )
        if bank.output != "texts" or bank.output_dtype != "float32":
            raise ValueError(
                "a sentence-transformers model returns one float32 vector per text, got "
                f"output={bank.output!r} and output_dtype={bank.output_dtype!r}; use "
                "encode(precision=...) of the model for other dtypes"
            )
        # The cache keeps vectors of `transform` only. `fit` checks parameters and trains nothing.
        self.bank: PrefixBank = clone(bank).set_params(cache=None).fit([""])
        device = resolve_device(bank.device)
        placement = torch.empty(0, device=device, dtype=resolve_dtype(bank.dtype, device))
        self.placement = torch.nn.Parameter(placement, requires_grad=False)
        self._extension: tuple[tuple[str, str], Extension | None] | None = None
        self._tokenizer: Any = None
        self._has_warned = False

    def _load_backbone(self) -> Backbone:
        """Load the backbone where the model is now, and in the dtype that it has now."""
        dtype = str(self.placement.dtype).removeprefix("torch.")
        self.bank.set_params(device=str(self.placement.device), dtype=dtype).fit([""])
        return self.bank.load_backbone()

    def _extend(self, backbone: Backbone) -> Extension | None:
        """Return the extension by the prefixes, built again if the bank or the device changed."""
        key = str(backbone.device), self.bank.representation().digest
        if self._extension is None or self._extension[0] != key:
            self._extension = key, self.bank.combination().extension(backbone)
        return self._extension[1]

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special tokens included."""
        return self.bank.combination().reading.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self.bank.set_params(max_length=value)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the backbone, as transformers loads it."""
        if self._tokenizer is None:
            combination = self.bank.combination()
            name, revision = combination.backbone, combination.revision
            self._tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        return self._tokenizer

    def get_embedding_dimension(self) -> int:
        """Return the length of a vector."""
        return self.bank.n_features_out_

    def get_config_dict(self) -> dict[str, Any]:
        """Return the facts that ``repr(model)`` shows."""
        combination = self.bank.combination()
        return {
            "prefixes": list(combination.names),
            "combine": combination.combine,
            "backbone": shared_name(combination.backbone),  # model cards show it
            "max_seq_length": combination.reading.max_length,
        }

    def preprocess(
        self,
        inputs: Sequence[Text],
        prompt: str | None = None,
        processing_kwargs: Any = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Tokenize and pad a batch of texts, or of pairs that are read as one sequence.

        `prompt` is put before each text, or before the first text of a pair, and after the prompt
        of the bank. Other options, such as ``task``, are ignored.
        """
        if processing_kwargs:
            raise ValueError(
                f"processing_kwargs must be None, got {processing_kwargs!r}: a bank has no "
                "processor, and max_seq_length is an attribute of the model"
            )
        backbone = self._load_backbone()
        combination = self.bank.combination()
        texts = check_texts(inputs, "batch")
        pairs = is_pairs(texts)
        reading = combination.pairs_reading() if pairs else combination.reading
        if pairs and reading.pairs == "apart":
            raise ValueError(
                "the bank reads each text of a pair by itself (pairs='apart'): encode the texts "
                "instead of the pairs"
            )
        if prompt:
            texts = [_with_prompt(text, prompt) for text in texts]
        tokens = tokenize(backbone, texts, reading)
        self._report(int(tokens.truncated.sum()), len(texts), reading.max_length)
        batch = pad_batch(tokens, np.arange(len(texts)), backbone.pad_id)
        mask = np.ones(batch.ids.shape, dtype=np.int64) if batch.mask is None else batch.mask
        return {
            "input_ids": torch.from_numpy(batch.ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "token_type_ids": torch.from_numpy(batch.type_ids),
        }

    def _report(self, n_truncated: int, n_texts: int, max_length: int) -> None:
        # One warning per model: a call may have many batches.
        if n_truncated and not (self._has_warned and self.bank.on_truncate == "warn"):
            report_truncated(n_truncated, n_texts, max_length, self.bank.on_truncate)
            self._has_warned = True

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Add token vectors and the pooled vectors to the features, without gradients.

        Raise FloatingPointError if a vector is not finite, as can happen in float16.
        """
        backbone = self._load_backbone()
        reading = self.bank.combination().reading
        ids, mask = (features[key].cpu().numpy() for key in ("input_ids", "attention_mask"))
        type_ids = features.get("token_type_ids")
        batch = Batch(
            ids,
            np.zeros_like(ids) if type_ids is None else type_ids.cpu().numpy(),
            None if mask.all() else mask.astype(np.bool_),
        )
        with torch.no_grad():
            hidden, kept = backbone.forward(batch, self._extend(backbone), reading)
            vectors = pool(hidden, kept, reading.pooling)  # (batch, feature), in float32
        check_finite(vectors.cpu().numpy(), backbone)
        return {**features, "token_embeddings": hidden, "sentence_embedding": vectors}

    def save(
        self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Save the bank by :meth:`PrefixBank.save`; the backbone is saved by name only."""
        self.bank.save(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> Self:
        """Load a module that :meth:`save` wrote; nothing in its files is executed.

        `model_kwargs` are parameters of the bank, such as ``dtype`` or ``backbone``, that replace
        saved ones. Other options are those of ``SentenceTransformer``.
        """
        for name, value, only in (
            ("backend", backend, "torch"),
            ("processor_kwargs", processor_kwargs or None, None),
            ("config_kwargs", config_kwargs or None, None),
        ):
            if value != only:
                raise ValueError(f"{name} must be {only!r} to load a bank, got {value!r}")
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        params = dict(model_kwargs or {})
        dtype = params.pop("torch_dtype", params.get("dtype"))
        if dtype is not None:
            params["dtype"] = str(dtype).removeprefix("torch.")
        return cls(PrefixBank.load(folder, **params))

    def __getstate__(self) -> dict[str, Any]:
        # A copy or another process builds these again.
        return {**self.__dict__, "_extension": None, "_tokenizer": None}


def _with_prompt(text: Text, prompt: str) -> Text:
    return prompt + text if isinstance(text, str) else (prompt + text[0], *text[1:])
