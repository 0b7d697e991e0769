"""A bank as the first module of a model of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from sklearn.base import clone
from torch import Tensor
from transformers import AutoTokenizer

from prefixembed._embed.batching import Batch, pad_batch, tokenize
from prefixembed._embed.encoding import check_finite, report_truncated
from prefixembed._embed.texts import Text, check_texts, is_pairs
from prefixembed._embed.transformer import attend_to
from prefixembed._model.attention import Attend
from prefixembed._model.devices import resolve_device, resolve_dtype
from prefixembed._model.pooling import pool
from prefixembed.backbone import Backbone
from prefixembed.bank import PrefixBank
from prefixembed.cache import Representation

if TYPE_CHECKING:
    from typing_extensions import Self


class PrefixModule(InputModule):
    """Backbone, prefixes and pooling of a bank, as sentence-transformers has its modules.

    The backbone is none of its submodules: it is the one that the process shares, which moving or
    casting this module must leave as it is. One empty parameter, which the model moves and casts,
    says where to compute and in what.

    Parameters
    ----------
    bank : PrefixBank
        It is cloned: what is done to it later has no effect here.

    Raises
    ------
    ValueError
        If the bank is to give vectors of words, or in fewer bits, or to read long texts in
        windows.
    """

    save_in_root = True

    def __init__(self, bank: PrefixBank) -> None:
        super().__init__()
        if bank.on_truncate == "window":
            raise ValueError(
                "a model of sentence-transformers reads one sequence a text, got "
                "on_truncate='window'"
            )
        if bank.output != "texts" or bank.output_dtype != "float32":
            raise ValueError(
                "a model of sentence-transformers gives one float32 vector a text, got "
                f"output={bank.output!r} and output_dtype={bank.output_dtype!r}; fewer bits are "
                "encode(precision=...) there"
            )
        self.bank: PrefixBank = clone(bank)
        device = resolve_device(bank.device)
        where = torch.empty(0, device=device, dtype=resolve_dtype(bank.dtype, device))
        self.where = torch.nn.Parameter(where, requires_grad=False)
        self._attends: dict[tuple[torch.device, torch.dtype, Representation], Attend | None] = {}
        self._tokenizer: Any = None
        self._said_what_is_cut = False

    def _placed(self) -> tuple[PrefixBank, Backbone]:
        """Give the bank and its backbone where the model is now."""
        dtype = str(self.where.dtype).removeprefix("torch.")
        bank = self.bank.set_params(device=str(self.where.device), dtype=dtype)
        bank._validate_params()
        return bank, bank._load_checked()

    def _attend(self, backbone: Backbone, how: Representation) -> Attend | None:
        key = backbone.device, backbone.dtype, how
        if key not in self._attends:
            self._attends[key] = attend_to(backbone, how, self.bank._active_prefixes())
        return self._attends[key]

    @property
    def max_seq_length(self) -> int:
        """Longest text in tokens, special tokens included."""
        return self.bank._representation().max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self.bank.set_params(max_length=value)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the backbone, as transformers has it."""
        if self._tokenizer is None:
            name, revision = self.bank._backbone_name(self.bank._check())
            self._tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        return self._tokenizer

    def get_embedding_dimension(self) -> int:
        """Give the length of a vector."""
        return self.bank.n_features_out_

    def get_config_dict(self) -> dict[str, Any]:
        """Give what is worth showing."""
        known = self.bank._check()
        return {
            "prefixes": self.bank._active_names(known),
            "combine": self.bank.combine,
            "backbone": self.bank._backbone_name(known)[0],
            "max_seq_length": self.max_seq_length,
        }

    def preprocess(
        self,
        inputs: Sequence[Text],
        prompt: str | None = None,
        processing_kwargs: Any = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Tokenize and pad some texts.

        Parameters
        ----------
        inputs : sequence of str or of (str, str)
            Texts, or pairs of texts that are read as one sequence.
        prompt : str, default=None
            Is put before each text.
        processing_kwargs : None
            There is no processor that takes them.
        **kwargs : dict
            What other modules are told, such as ``task``.

        Returns
        -------
        features : dict of str to Tensor of shape (batch, position)
            ``input_ids``, ``attention_mask`` and ``token_type_ids``.

        Raises
        ------
        ValueError
            If what is no text is among them, or a text is to be cut and the bank's `on_truncate`
            is ``"raise"``.
        """
        if processing_kwargs:
            raise ValueError(
                f"processing_kwargs must be None, got {processing_kwargs!r}: a bank has no "
                "processor, and max_seq_length is an attribute of the model"
            )
        bank, backbone = self._placed()
        texts = check_texts(inputs, "batch")
        how = bank._representation()
        if is_pairs(texts) and how.pairs == "apart":
            raise ValueError(
                "a bank with pairs='apart' reads each text of a pair by itself: encode the texts, "
                "not the pairs"
            )
        if prompt:
            texts = [_prompted(text, prompt) for text in texts]
        tokens = tokenize(backbone.tokenizer(how.max_length), texts, prompt=how.prompt)
        self._report(int(tokens.truncated.sum()), len(texts), how.max_length)
        batch = pad_batch(tokens, np.arange(len(texts)), backbone.pad_id)
        mask = np.ones(batch.ids.shape, dtype=np.int64) if batch.mask is None else batch.mask
        return {
            "input_ids": torch.from_numpy(batch.ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "token_type_ids": torch.from_numpy(batch.type_ids),
        }

    def _report(self, n_cut: int, n_texts: int, max_length: int) -> None:
        # Once, where it is a warning: batches are many.
        if n_cut and not (self._said_what_is_cut and self.bank.on_truncate == "warn"):
            report_truncated(n_cut, n_texts, max_length, self.bank.on_truncate)
            self._said_what_is_cut = True

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Turn tokens into vectors; no gradient flows, prefixes and backbone are frozen.

        Parameters
        ----------
        features : dict of str to Tensor of shape (batch, position)
            As :meth:`preprocess` gives them.
        **kwargs : dict
            Not used.

        Returns
        -------
        features : dict of str to Tensor
            With ``token_embeddings`` of shape (batch, position, feature), and
            ``sentence_embedding`` of shape (batch, feature) in float32.

        Raises
        ------
        FloatingPointError
            If a vector is not finite, as can happen in float16.
        """
        bank, backbone = self._placed()
        how = bank._representation()
        ids, mask = (features[key].cpu().numpy() for key in ("input_ids", "attention_mask"))
        type_ids = features.get("token_type_ids")
        batch = Batch(
            ids,
            np.zeros_like(ids) if type_ids is None else type_ids.cpu().numpy(),
            None if mask.all() else mask.astype(np.bool_),
        )
        with torch.no_grad():
            attend = self._attend(backbone, how)
            hidden, kept = backbone.forward(batch, attend, how.pooled_layers, how.first_position)
            vectors = pool(hidden, kept, how.pooling)  # (batch, feature)
        check_finite(vectors.cpu().numpy(), backbone)
        return {**features, "token_embeddings": hidden, "sentence_embedding": vectors}

    def save(
        self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Write the bank as :meth:`PrefixBank.save` does; the backbone goes by its name.

        Parameters
        ----------
        output_path : str
            Folder.
        *args : tuple
            Not used.
        safe_serialization : bool, default=True
            Prefixes are safetensors whatever it says.
        **kwargs : dict
            Not used.
        """
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
        """Read what :meth:`save` wrote; nothing in it is executed.

        Parameters
        ----------
        model_name_or_path : str
            Folder, or repository on the Hub.
        subfolder : str, default=""
            Where in it the module is.
        token, cache_folder, revision, local_files_only : object
            As sentence-transformers takes them.
        model_kwargs : mapping of str to object, default=None
            Parameters of the bank that was not saved with them, such as ``dtype``, or with others,
            such as ``backbone``.
        processor_kwargs, config_kwargs : None
            There is nothing that takes them.
        backend : {"torch"}, default="torch"
            What to compute with.
        **kwargs : dict
            Not used.

        Returns
        -------
        module : PrefixModule
            With prefixes equal to those that were saved.

        Raises
        ------
        ValueError
            If a file is damaged, or a parameter is wrong.
        """
        for name, value, only in (
            ("backend", backend, "torch"),
            ("processor_kwargs", processor_kwargs or None, None),
            ("config_kwargs", config_kwargs or None, None),
        ):
            if value != only:
                raise ValueError(f"{name} must be {only!r} where a bank is loaded, got {value!r}")
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
        # Made again where it is unpickled.
        return {**self.__dict__, "_attends": {}, "_tokenizer": None}


def _prompted(text: Text, prompt: str) -> Text:
    return prompt + text if isinstance(text, str) else (prompt + text[0], *text[1:])
