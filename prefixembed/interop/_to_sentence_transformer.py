"""A bank as a model of sentence-transformers; the library is imported when it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn import config_context

from prefixembed._utils.parameters import checked
from prefixembed.bank import PrefixBank

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@checked(bank=[PrefixBank])
def to_sentence_transformer(bank: PrefixBank, **params: Any) -> SentenceTransformer:
    """Return a sentence-transformers model with the vectors of a bank.

    Retrievers and vector stores that take a ``SentenceTransformer`` can use the bank this way.

    Read more in the :doc:`user guide </guide/interop>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    bank : PrefixBank
        Bank to encode with. It is cloned: later changes do not affect the model.
    **params : dict
        Parameters of ``SentenceTransformer``, such as ``prompts`` or ``similarity_fn_name``.

    Returns
    -------
    model : sentence_transformers.SentenceTransformer
        Model on the device and in the dtype of the bank; ``model.to`` changes them. Vectors equal
        those of ``bank.transform`` and are not normalized. The cache of the bank is not used.

    Raises
    ------
    ImportError
        If sentence-transformers is not installed.
    ValueError
        If a parameter of the bank is wrong, or the bank does not return one float32 vector per
        text, or reads long texts in windows.

    See Also
    --------
    to_mteb : Returns a model for MTEB.

    Notes
    -----
    ``model.save_pretrained`` writes the prefixes, the parameters and the name of the backbone, as
    :meth:`PrefixBank.save` does. There are two ways to load such a folder:

    - ``SentenceTransformer(folder, trust_remote_code=True)``: the library wants that flag for
      every class that is not its own. It also allows code from the repository to run;
    - ``to_sentence_transformer(PrefixBank.load(folder))``: no code from the folder runs.

    Backbone and prefixes are frozen: the model cannot be trained.

    Examples
    --------
    >>> from prefixembed import PrefixBank
    >>> from prefixembed.interop import to_sentence_transformer
    >>> from prefixembed.tasks import demo_backbone
    >>> model = to_sentence_transformer(PrefixBank({}, backbone=demo_backbone()))
    >>> model.encode(["a fine film", "a dud"]).shape
    (2, 384)
    """
    try:
        from sentence_transformers import SentenceTransformer

        from prefixembed.interop.sentence_transformers import PrefixModule
    except ImportError as error:
        raise ImportError(
            "to_sentence_transformer needs sentence-transformers 6 or later: "
            "pip install 'prefixembed[sentence-transformers]'"
        ) from error
    # `checked` switches off nested checks, such as that of the bank's own parameters.
    with config_context(skip_parameter_validation=False):
        module = PrefixModule(bank)
    return SentenceTransformer(
        modules=[module], **{"device": str(module.placement.device), **params}
    )
