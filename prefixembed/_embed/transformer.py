"""The base of the estimators that turn texts into vectors."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config
from sklearn.utils.metadata_routing import UNUSED

from prefixembed._embed.quantization import OUTPUT_DTYPES, output_width
from prefixembed._model.devices import device_exists
from prefixembed._utils.parameters import Count, check_cache_name
from prefixembed._utils.warnings import warn
from prefixembed.reading import PAIRS, POOLINGS, Reading

_RUNNING = (
    "batch_tokens", "batch_invariant", "on_truncate", "device", "dtype", "output", "output_dtype",
    "cache", "verbose",
)  # fmt: skip


class _OwnContainers(TransformerMixin):
    """Has set_output, but is not wrapped by scikit-learn.

    scikit-learn names columns after what was fitted. The vectors of pairs and of texts may differ
    in width, so that `transform` names them after what it returns.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(auto_wrap_output_keys=None, **kwargs)
        cls._sklearn_auto_wrap_output_keys = {"transform"}


class TextTransformer(_OwnContainers, ClassNamePrefixFeaturesOutMixin, BaseEstimator, ABC):
    """Base of the estimators that return one fixed vector per text."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "backbone": [str, os.PathLike],
        "revision": [str, None],
        "pooling": [StrOptions({"auto", *POOLINGS})],
        "pairs": [StrOptions({"auto", *PAIRS})],
        "prompt": [str, None],
        "max_length": [Count(8), None],
        "batch_tokens": [Count(1), StrOptions({"auto"})],
        "batch_invariant": ["boolean"],
        "on_truncate": [StrOptions({"warn", "raise", "ignore", "window"})],
        "device": [str],
        "dtype": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "output": [StrOptions({"texts", "words"})],
        "output_dtype": [StrOptions(set(OUTPUT_DTYPES))],
        "cache": [str, os.PathLike, HasMethods(["get", "put"]), None],
        "verbose": ["verbose"],
    }

    cache: Any
    device: str
    on_truncate: str
    output: str
    output_dtype: str

    # `out` is not metadata to route.
    __metadata_request__transform: ClassVar[dict[str, str]] = {"out": UNUSED}

    @abstractmethod
    def as_bank(self) -> Any:
        """Return the :class:`PrefixBank` whose vectors :meth:`transform` returns."""

    def transform(self, X: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Turn texts into vectors, with one forward pass per batch.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2), or iterator
            Texts, or pairs of texts. With ``output="words"``, sentences as sequences of words.
            A bounded number of texts of an iterator is held at a time.
        out : ndarray of shape (n_texts, n_features), default=None
            Where to write, for example a :class:`numpy.memmap`. It may have more rows than an
            iterator has texts. Binary vectors have ``ceil(n_features / 8)`` columns. None for a
            new array.

        Returns
        -------
        vectors : ndarray of shape (n_texts, n_features), or (n_words, n_features)
            In `output_dtype` and in the order of `X`. A vector does not depend on the other
            texts, up to rounding in `dtype`; with `batch_invariant`, no bit does. If `out` is
            given, the rows that were written.

        Raises
        ------
        ValueError
            If a parameter is wrong, `X` holds something that is not a text, `out` does not fit,
            or the backbone is not the one that the prefixes were learned on.
        FloatingPointError
            If a vector is not finite, which can happen in float16.
        """
        self._validate_params()
        return self._in_container(self._embed(X, out), X)

    def _embed(self, X: Any, out: NDArray[Any] | None) -> NDArray[Any]:
        # The bank is the only thing that embeds.
        return self.as_bank().set_output(transform="default").transform(X, out)

    def _validate_params(self) -> None:
        super()._validate_params()
        check_cache_name(self.cache)

    def _vectors(self, X: Any, words: bool) -> NDArray[np.float32]:
        """Return the float32 vectors that the estimator's own heads read."""
        bank = self.as_bank().set_output(transform="default")
        output = "words" if words else "texts"
        return bank.set_params(output=output, output_dtype="float32").transform(X)

    def _running_params(self) -> dict[str, Any]:
        """Return the parameters that say where and how vectors are computed and kept."""
        return {name: getattr(self, name) for name in _RUNNING}

    def _reading_params(self) -> dict[str, Any]:
        """Return the fields of the reading that parameters decide."""
        values = {field.name: getattr(self, field.name, None) for field in fields(Reading)}
        decided = {
            name: value
            for name, value in values.items()
            if value is not None and (value != "auto" or name == "prompt")
        }
        return {**decided, "windows": self.on_truncate == "window"}

    def _in_container(self, vectors: NDArray[Any], X: Any) -> Any:
        """Return vectors in the container that set_output asks for."""
        container = _get_output_config("transform", self)["dense"]
        if container == "default":
            return vectors
        prefix = type(self).__name__.lower()
        names = [f"{prefix}{k}" for k in range(vectors.shape[1])]
        # Rows of X are sentences: their index does not fit vectors of words.
        original = vectors if self.output == "words" else X
        return ADAPTERS_MANAGER.adapters[container].create_container(vectors, original, names)

    @property
    def _n_features_out(self) -> int:
        # ClassNamePrefixFeaturesOutMixin names the output features by it.
        return output_width(int(self.n_features_out_), self.output_dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not device_exists(self.device):
            warn(
                f"device {self.device!r}, which this {type(self).__name__} was saved with, does "
                "not exist on this machine: device='auto' is used instead"
            )
            self.device = "auto"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags
