"""An estimator as a model of MTEB."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefixembed._embed.transformer import TextTransformer


@dataclass(frozen=True, eq=False)
class MTEBEncoder:
    """What MTEB calls an ``EncoderProtocol``: it encodes texts by an estimator.

    Parameters
    ----------
    transformer : TextTransformer
        Fitted.
    mteb_model_meta : mteb.ModelMeta
        What the model is called, and which it is.
    """

    transformer: TextTransformer
    mteb_model_meta: Any

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Turn texts into vectors.

        Parameters
        ----------
        inputs : iterable of mapping
            Batches with their texts under ``"text"``. Batches of the backbone are others: they go
            by its own budget of tokens.
        task_metadata, hf_split, hf_subset, prompt_type : object
            Of the task. The same text has the same vector in every task.
        **kwargs : dict
            ``batch_size`` (MTEB has used it for `inputs`), ``show_progress_bar``.

        Returns
        -------
        vectors : ndarray of shape (n_texts, n_features)
            In input order.

        Raises
        ------
        ValueError
            If a batch has no text, or there are other keyword arguments.
        """
        bar = kwargs.pop("show_progress_bar", False)
        kwargs.pop("batch_size", None)
        if kwargs:
            raise ValueError(f"encode_kwargs has {sorted(kwargs)}, which a bank does not know")
        transformer = self.transformer
        if bar and not transformer.verbose:
            transformer = deepcopy(transformer)
            transformer.verbose = True
        texts = (text for batch in inputs for text in _texts(batch))
        return np.asarray(transformer.transform(texts))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Give the cosine of each of some vectors and each of others."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Give the cosine of each of some vectors and its partner among others."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def _texts(batch: Mapping[str, Any]) -> Iterable[Any]:
    if "text" not in batch:
        raise ValueError(f"the task must have texts, and has {sorted(batch)}")
    return batch["text"]
