"""MTEB: evaluate an estimator on the tasks of the benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.transformer import TextTransformer
from prefixembed._utils.parameters import checked
from prefixembed.bank import PrefixBank


@dataclass(frozen=True, eq=False)
class MTEBEncoder:
    """Encode texts for MTEB, by its ``EncoderProtocol``; :func:`to_mteb` returns one."""

    bank: PrefixBank
    mteb_model_meta: Any  # name and revision that MTEB files results under

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
        """Return one vector per text, in input order, from batches of texts.

        The bank makes batches of its own, by `batch_tokens`. Facts about the task do not affect the
        vectors. Raise ValueError if a batch has no texts.
        """
        show_progress = kwargs.pop("show_progress_bar", False)
        kwargs.pop("batch_size", None)  # MTEB has applied it to `inputs`
        if kwargs:
            raise ValueError(f"encode_kwargs has {sorted(kwargs)}, which are not supported")
        bank = self.bank
        if show_progress and not bank.verbose:
            bank = clone(bank).set_params(verbose=True)
        texts = (text for batch in inputs for text in _texts(batch))
        return np.asarray(bank.transform(texts))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each vector in `embeddings1` and each in `embeddings2`."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each vector in `embeddings1` and its partner in `embeddings2`."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


@checked(estimator=[TextTransformer], name=[str])
def to_mteb(estimator: TextTransformer, name: str = "prefixembed/bank") -> MTEBEncoder:
    """Return a model that MTEB can evaluate.

    Read more in the :doc:`user guide </guide/interop>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    estimator : PrefixBank, PrefixEncoder or MultiTaskEncoder
        Fitted estimator. It is copied: later changes do not affect the model.
    name : str, default="prefixembed/bank"
        Name of the model for MTEB, as ``"organisation/model"``.

    Returns
    -------
    model : MTEBEncoder
        Model for ``mteb.evaluate``. MTEB files results by name and revision. The revision is a
        digest of everything that decides a vector, so that two banks never share results.

    Raises
    ------
    ImportError
        If MTEB is not installed.
    ValueError
        If the name has no slash, or the estimator does not return one float32 vector per text.

    See Also
    --------
    to_sentence_transformer : Returns a model of sentence-transformers.

    Notes
    -----
    Vectors come from ``transform`` and its cache, so that texts that several tasks share are
    encoded once. Similarity is the cosine. Prompts of tasks are not used.

    Examples
    --------
    >>> from prefixembed.interop import to_mteb
    >>> model = to_mteb(bank, "me/three-sources")  # doctest: +SKIP
    >>> mteb.evaluate(model, mteb.get_tasks(["STSBenchmark"]))  # doctest: +SKIP
    """
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ImportError as error:
        raise ImportError("to_mteb needs MTEB: pip install 'prefixembed[mteb]'") from error
    check_is_fitted(estimator)
    if name.count("/") != 1:
        raise ValueError(f"name must be 'organisation/model', got {name!r}")
    bank = clone(estimator.as_bank())
    if bank.output != "texts" or bank.output_dtype != "float32":
        raise ValueError(
            "MTEB needs one float32 vector per text, got "
            f"output={bank.output!r} and output_dtype={bank.output_dtype!r}"
        )
    vectors = np.asarray(bank.transform([""]))  # fails now rather than in the first task
    representation = bank.representation()
    meta = ModelMeta.create_empty(
        {
            "name": name,
            "revision": representation.digest,
            "max_tokens": representation.reading.max_length,
            "embed_dim": vectors.shape[1],
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["PyTorch"],
            "use_instructions": False,
        }
    )
    return MTEBEncoder(bank, meta)


def _texts(batch: Mapping[str, Any]) -> Iterable[Any]:
    if "text" not in batch:
        raise ValueError(f"a task of texts is needed, got batches of {sorted(batch)}")
    return batch["text"]
