"""What the estimators share: texts to vectors under scikit-learn's grammar."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions

from prefixembed._attention import combined_attention
from prefixembed._batching import check_texts
from prefixembed._embedding import embed_texts
from prefixembed.backbone import Backbone
from prefixembed.prefix import Prefix


class TextTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of estimators that give one fixed vector a text."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "revision": [str, None],
        "max_length": [Interval(Integral, 8, None, closed="left"), None],
        "batch_tokens": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "on_truncate": [StrOptions({"warn", "raise", "ignore"})],
        "device": [str],
        "dtype": [StrOptions({"auto", "float32", "bfloat16"})],
        "verbose": ["verbose"],
    }

    def _embed(
        self,
        X: Any,
        backbone: Backbone,
        prefixes: Sequence[Prefix],
        weights: Sequence[float],
        combine: str,
        pooling: str,
        max_length: int,
    ) -> NDArray[np.float32]:
        texts = check_texts(X)
        parts = [torch.tensor(prefix.keys_values, device=backbone.device) for prefix in prefixes]
        return embed_texts(
            backbone,
            texts,
            combined_attention(parts, weights, combine),
            pooling=pooling,
            max_length=max_length,
            batch_tokens=self.batch_tokens,
            on_truncate=self.on_truncate,
            progress=bool(self.verbose),
        )

    @property
    def _n_features_out(self) -> int:
        # What ClassNamePrefixFeaturesOutMixin makes feature names of.
        return int(self.n_features_out_)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags
