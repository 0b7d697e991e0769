"""What the estimators share: texts to vectors under scikit-learn's grammar."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.metadata_routing import UNUSED

from prefixembed._embed.embedder import CHUNK, Embedder, embed
from prefixembed._embed.quantization import OUTPUT_DTYPES, output_width
from prefixembed._embed.texts import check_sentences, iterate_texts
from prefixembed._model.attention import Attend, attention_dtype, combined_attention
from prefixembed._model.devices import is_here, resolve_device, resolve_dtype
from prefixembed._utils.parameters import Count
from prefixembed._utils.warnings import warn
from prefixembed.backbone import Backbone
from prefixembed.cache import Representation, VectorCache, open_cache
from prefixembed.prefix import Prefix


class TextTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, ABC):
    """Base of estimators that give one fixed vector a text."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "revision": [str, None],
        "max_length": [Count(8), None],
        "batch_tokens": [Count(1), StrOptions({"auto"})],
        "on_truncate": [StrOptions({"warn", "raise", "ignore", "window"})],
        "device": [str],
        "dtype": [StrOptions({"auto", "float32", "bfloat16", "float16"})],
        "output": [StrOptions({"texts", "words"})],
        "output_dtype": [StrOptions(set(OUTPUT_DTYPES))],
        "cache": [str, os.PathLike, VectorCache, None],
        "verbose": ["verbose"],
    }

    device: str

    # `out` is no metadata to route.
    __metadata_request__transform: ClassVar[dict[str, str]] = {"out": UNUSED}

    def _embed(
        self,
        X: Any,
        representation: Representation,
        prefixes: Sequence[Prefix],
        n_features: int,
        load: Callable[[], Backbone],
        words: bool,
        out: NDArray[Any] | None,
        output_dtype: str,
    ) -> NDArray[Any]:
        is_iterator = isinstance(X, Iterator)
        texts = iterate_texts(X, CHUNK, words) if is_iterator else check_sentences(X, words)

        @functools.cache
        def load_with_prefix() -> tuple[Backbone, Attend | None]:
            backbone = load()
            return backbone, attend_to(backbone, representation, prefixes)

        embedder = Embedder(
            representation=representation,
            load=load_with_prefix,
            n_features=n_features,
            cache=None if self.cache is None else open_cache(self.cache),
            batch_tokens=self.batch_tokens,
            on_truncate=self.on_truncate,
            output_dtype=output_dtype,
            expects_pairs=self._expects_pairs(),
        )
        return embed(embedder, texts, out, bool(self.verbose))

    @abstractmethod
    def _representation(self) -> Representation:
        """Tell what decides the vectors that transform gives."""

    def _expects_pairs(self) -> bool:
        """Tell whether rows are pairs where there are none to tell by."""
        return False

    def _in_container(self, vectors: NDArray[Any]) -> Any:
        """Give vectors of words the frame that set_output asks for.

        scikit-learn would give it the index of X, which has a row a sentence.
        """
        container = _get_output_config("transform", self)["dense"]
        if container != "default" and vectors.shape[1] != self._n_features_out:
            raise ValueError(
                f"names of features are for {self._n_features_out}, and these vectors have "
                f"{vectors.shape[1]}: pairs='apart' gives other vectors for pairs than for "
                "texts, and set_output needs a fit on the kind that is transformed"
            )
        if self.output != "words" or container != "pandas":
            return vectors
        import pandas as pd

        return pd.DataFrame(vectors, columns=self.get_feature_names_out())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not is_here(self.device):
            warn(
                f"device {self.device!r}, which this {type(self).__name__} was saved with, is not "
                "on this machine: device='auto' is taken in its place"
            )
            self.device = "auto"

    def _dtype_name(self) -> str:
        return str(resolve_dtype(self.dtype, resolve_device(self.device))).removeprefix("torch.")

    @property
    def _n_features_out(self) -> int:
        # What ClassNamePrefixFeaturesOutMixin makes feature names of.
        return output_width(int(self.n_features_out_), self.output_dtype)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def attend_to(
    backbone: Backbone, representation: Representation, prefixes: Sequence[Prefix]
) -> Attend | None:
    """Make of prefixes what forward calls of a backbone carry.

    Parameters
    ----------
    backbone : Backbone
        What they are used with.
    representation : Representation
        How they are combined, and how texts are read.
    prefixes : sequence of Prefix
        In the order of `representation`.

    Returns
    -------
    attend : Attend or None
        None where there is no prefix.

    Raises
    ------
    ValueError
        If texts cannot be read like that: there are too few layers or positions.
    """
    backbone.check_pooled_layers(representation.pooled_layers)
    backbone.check_positions(representation.first_position, representation.max_length)
    dtype = attention_dtype(backbone.device, backbone.dtype)
    parts = [
        torch.tensor(prefix.keys_values, device=backbone.device, dtype=dtype) for prefix in prefixes
    ]
    weights = [weight for _, weight in representation.prefixes]
    return combined_attention(parts, weights, representation.combine)
