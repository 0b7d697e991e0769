"""Many source tasks, one forward pass, one vector per text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray
from sklearn.base import _fit_context
from sklearn.utils import Tags, estimator_html_repr
from sklearn.utils._param_validation import StrOptions

from prefixembed._embed.combination import Combination, agree, check_selection, combine_prefixes
from prefixembed._embed.embedder import CHUNK, Embedder, embed
from prefixembed._embed.prefix_mapping import PrefixMapping, check_prefixes
from prefixembed._embed.representation import Representation
from prefixembed._embed.texts import check_sentences, is_pairs, iterate_texts
from prefixembed._embed.transformer import TextTransformer
from prefixembed._files import bank_folder
from prefixembed._files.cards import bank_card, bank_table
from prefixembed._files.hub import HubMixin
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import Count, Number, to_json
from prefixembed._utils.warnings import warn
from prefixembed.backbone import Backbone
from prefixembed.cache import VectorCache, open_cache
from prefixembed.prefix import Prefix

if TYPE_CHECKING:
    from typing_extensions import Self

# Where a bank runs and what it keeps is not part of a saved bank.
_NOT_SAVED = {
    "prefixes", "batch_tokens", "batch_invariant", "device", "dtype", "cache", "verbose",
}  # fmt: skip


Combination.__module__ = __name__  # a public path


@substitute
class PrefixBank(PrefixMapping, HubMixin, TextTransformer):
    """Combine the prefixes of several source tasks into one vector per text.

    The prefixes were learned independently. A source task is added, replaced or removed by
    touching its prefix alone. :meth:`fit` trains nothing, and :meth:`transform` costs one forward
    pass, however many prefixes there are.

    Read more in the :doc:`user guide </guide/bank>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    prefixes : dict of str to PrefixEncoder or Prefix
        Fitted encoder or prefix of each source task, by name. All must come from one backbone;
        their lengths may differ. A bank holds values: it keeps the prefix that an encoder has
        when it is assigned, here or through :meth:`set_params`. It never changes the dict.
    active : list or tuple of str, default=None
        Names of the prefixes to use. None for all; an empty selection gives the bare backbone.
        Inactive prefixes do not affect the vectors.
    combine : {"concat", "mean"}, default="concat"
        How the active prefixes are combined:

        - ``"concat"``: all prefixes are concatenated in every layer [1]_, and tokens share their
          attention among them. What their slots add is summed;
        - ``"mean"``: every layer averages the attention to each prefix together with the tokens,
          and what their slots add.
    weights : float or dict of str to float, default=None
        Factor on the attention mass of prefixes before normalization, and on what their slots add:
        of all, or by name. Missing names and None mean 1.
    backbone : str or path-like, default=None
        Hub name or folder of the backbone. None for the one that the prefixes name. It must be
        given if there is no prefix, or if the backbone has moved.
    revision : str, default=None
        Revision of the backbone on the Hub. None for the one that the prefixes name, or the
        newest one if `backbone` is given.
    pooling : {"auto", "mean", "cls", "max", "last"}, default="auto"
        How token vectors become one vector per text. ``"auto"`` follows the active prefixes, or
        the backbone if none is active.
    pooled_layers : int, default=None
        Number of last layers whose token vectors are averaged before pooling. None follows the
        active prefixes.
    pairs : {"auto", "joint", "apart"}, default="auto"
        How pairs of texts are read:

        $joint_or_apart
        - ``"auto"``: as the active prefixes were learned, or as the backbone was trained if none
          of them was learned on pairs.
    prompt : str, default=None
        Text that is put before each text. None follows the active prefixes, or the backbone if
        none is active.
    max_length : int, default=None
        Longest text in tokens, special tokens included. None for the largest limit among the
        active prefixes, or the backbone's if none is active.
    $batch_tokens
    $batch_invariant
    $on_truncate
    $device
    $dtype
    $output
    $output_dtype
    $cache
    $verbose

    Attributes
    ----------
    n_features_out_ : int
        Length of the vector of a text, or of a pair if :meth:`fit` has seen pairs.
    of_pairs_ : bool
        Whether :meth:`fit` has seen pairs.

    See Also
    --------
    PrefixEncoder : Learns a prefix from one source task.
    prefix_subsets : Lists selections of prefixes for a grid search.

    Notes
    -----
    Let ``Z_x`` be the softmax mass over the tokens, ``Z_t`` the mass over prefix t times its
    weight, and ``o_x``, ``o_t`` the attention to either alone. The output of a layer is
    ``(Z_x o_x + sum_t Z_t o_t) / (Z_x + sum_t Z_t)`` with ``"concat"`` [1]_, and the mean over t
    of ``(Z_x o_x + Z_t o_t) / (Z_x + Z_t)`` with ``"mean"``. Let ``d_t`` be what the slots of
    prefix t add to a feed-forward layer. The layer gets the sum over t of weight times ``d_t``, or
    the mean with ``"mean"``. Prefixes have no position, so that their order does not matter. A
    bank of one prefix gives the vectors of its encoder.

    :meth:`transform` works without :meth:`fit`. :meth:`fit` records what decides the vectors.
    If that changes, the next :meth:`transform` warns that whatever was fitted on the old vectors
    must be fitted again.

    :meth:`get_params` returns the prefixes, not the encoders they came from. Clones, grid
    searches and pickles therefore keep them: prefixes have no fitted state to lose. Pickles hold
    the name of the backbone, never its weights.

    If one encoder is assigned under several names, each name gets the prefix of one fit, in the
    order of the fits. An encoder that was not fitted exactly once per name is refused.

    References
    ----------
    $paper
    $sentence_bert

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_steps=5, random_state=0)
    >>> encoder = encoder.fit(texts, [1, 0, 1, 0] * 8)
    >>> bank = PrefixBank({"stars": encoder})
    >>> bank.transform(["a fine film", "a dud"]).shape
    (2, 384)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TextTransformer._parameter_constraints,
        "prefixes": [dict],
        "active": [list, tuple, None],
        "combine": [StrOptions({"concat", "mean"})],
        "weights": [Number(0, None, closed="neither"), dict, None],
        "backbone": [str, os.PathLike, None],
        "pooled_layers": [Count(1), None],
    }

    _MAIN_FILE, _SAVED_AS = bank_folder.MANIFEST, ""
    _other_files = staticmethod(bank_folder.prefix_files)
    of_pairs_ = False
    # What decided the vectors when the bank was fitted.
    _fitted_on: Any = None

    def __init__(
        self,
        prefixes: dict[str, Any],
        *,
        active: list[str] | tuple[str, ...] | None = None,
        combine: str = "concat",
        weights: float | dict[str, float] | None = None,
        backbone: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        pooling: str = "auto",
        pooled_layers: int | None = None,
        pairs: str = "auto",
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | str = "auto",
        batch_invariant: bool = False,
        on_truncate: str = "warn",
        device: str = "auto",
        dtype: str = "auto",
        output: str = "texts",
        output_dtype: str = "float32",
        cache: str | os.PathLike[str] | VectorCache | None = "memory",
        verbose: bool | int = False,
    ) -> None:
        self.prefixes = prefixes
        self.active = active
        self.combine = combine
        self.weights = weights
        self.backbone = backbone
        self.revision = revision
        self.pooling = pooling
        self.pooled_layers = pooled_layers
        self.pairs = pairs
        self.prompt = prompt
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.batch_invariant = batch_invariant
        self.on_truncate = on_truncate
        self.device = device
        self.dtype = dtype
        self.output = output
        self.output_dtype = output_dtype
        self.cache = cache
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Check parameters and texts; nothing is trained and no backbone is loaded.

        Parameters
        ----------
        $X
        y : Ignored
            Not used, present for API consistency.

        Returns
        -------
        self : PrefixBank
            Fitted bank.

        Raises
        ------
        ValueError
            If prefixes do not fit each other, a name is unknown, or `X` holds something that is
            not a text.
        """
        combination = self.combination()
        self.of_pairs_ = is_pairs(check_sentences(X, self.output == "words"))
        self._fitted_on = combination.identity(self.of_pairs_, self.output, self.output_dtype)
        return self

    def _embed(self, X: Any, out: NDArray[Any] | None) -> NDArray[Any]:
        embedder = self._embedder()
        self._warn_if_changed(embedder.combination)
        words = self.output == "words"
        is_iterator = isinstance(X, Iterator)
        texts = iterate_texts(X, CHUNK, words) if is_iterator else check_sentences(X, words)
        return embed(embedder, texts, out, bool(self.verbose), self.of_pairs_)

    def as_bank(self) -> PrefixBank:
        """Return the bank itself; encoders return the bank whose vectors they return.

        Returns
        -------
        bank : PrefixBank
            The bank itself.
        """
        return self

    def combination(self) -> Combination:
        """Return the active prefixes, and how texts are read with them.

        Returns
        -------
        combination : Combination
            Names, prefixes and weights of the active prefixes, and the reading that they share.
        """
        return combine_prefixes(
            check_prefixes(self.prefixes),
            self.active,
            self.weights,
            self.combine,
            None if self.backbone is None else os.fspath(self.backbone),
            self.revision,
            self._reading_params(),
        )

    def representation(self) -> Representation:
        """Return everything but the text that decides a vector.

        Returns
        -------
        representation : Representation
            Banks with equal digests give equal vectors. The backbone of a bank without any prefix
            is loaded for it.
        """
        return self._embedder().representation

    def load_backbone(self) -> Backbone:
        """Load the backbone, and check that prefixes and reading fit it.

        Returns
        -------
        backbone : Backbone
            Shared by all estimators of the process.

        Raises
        ------
        ValueError
            If prefixes or reading do not fit the backbone.
        """
        return self._embedder().backbone

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the bank as a folder: one file per prefix, and ``bank.json``.

        Everything that decides vectors is written. Where the bank runs and what it keeps
        (`device`, `dtype`, `cache`, `batch_tokens`, `batch_invariant`, `verbose`) is not, nor is
        the path of a backbone on this machine: see :meth:`Prefix.save`.

        Parameters
        ----------
        folder : str or path-like
            Created if it does not exist. A bank in it is replaced: a kill at any moment leaves
            the old one or the new one. Other files are left alone.

        Raises
        ------
        ValueError
            If a parameter is wrong, prefixes do not fit each other, or ``bank.json`` is no bank's.
        """
        self._check()
        params = self.get_params(deep=False)
        bank_folder.write_folder(
            folder,
            {name: prefix.to_bytes() for name, prefix in self.prefixes.items()},
            {name: to_json(value) for name, value in params.items() if name not in _NOT_SAVED},
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **params: Any) -> Self:
        """Read a bank that :meth:`save` wrote; nothing in it is executed.

        Parameters
        ----------
        folder : str or path-like
            Folder of the bank.
        **params : dict
            Parameters that add to or replace the saved ones, such as ``device``, or ``backbone``
            if the backbone has moved.

        Returns
        -------
        bank : PrefixBank
            With prefixes equal to those that were saved.

        Raises
        ------
        FileNotFoundError
            If there is no bank, or the file of a prefix is missing.
        ValueError
            If a file is damaged or has another format version, or a parameter is wrong.
        """
        saved = bank_folder.read_folder(folder)
        where = repr(os.fspath(folder))
        if unknown := saved.parameters.keys() - (set(cls._get_param_names()) - _NOT_SAVED):
            raise ValueError(f"the bank in {where} has unknown parameters {sorted(unknown)}")
        prefixes = {
            name: Prefix.from_bytes(content, f"prefix {name!r} in {where}")
            for name, content in saved.prefixes.items()
        }
        # A folder that is not here: the backbone is the one that prefixes name.
        fingerprints = [prefix.fingerprint for prefix in prefixes.values()]
        given = bank_folder.find_backbone(saved.parameters, fingerprints)
        bank = cls(prefixes, **{**given, **params})
        bank._check()
        return bank

    def _card(self, repo_id: str) -> str:
        self._check()
        combination = self.combination()
        backbone, fingerprint = combination.backbone, combination.fingerprint
        facts = {name: prefix.facts() for name, prefix in self.prefixes.items()}
        names = combination.names
        return bank_card(repo_id, facts, backbone, fingerprint, names, self.combine)

    @property
    def n_features_out_(self) -> int:
        """Length of the vectors of the kind of texts that `fit` has seen."""
        try:
            self._validate_params()
            combination = self.combination()
            reading = combination.pairs_reading() if self.of_pairs_ else combination.reading
        except (OSError, ValueError) as error:
            raise AttributeError(f"the length of vectors is unknown: {error}") from error
        return reading.width(combination.n_features, self.of_pairs_)

    def _check(self) -> None:
        """Check parameters and prefixes without reading the backbone's files."""
        self._validate_params()
        backbone = None if self.backbone is None else os.fspath(self.backbone)
        check_selection(check_prefixes(self.prefixes), self.active, self.weights, backbone)

    def _embedder(self) -> Embedder:
        return Embedder(
            combination=self.combination(),
            dtype=self.dtype,
            device=self.device,
            cache=None if self.cache is None else open_cache(self.cache),
            batch_tokens=self.batch_tokens,
            on_truncate=self.on_truncate,
            output_dtype=self.output_dtype,
            batch_invariant=self.batch_invariant,
        )

    def _warn_if_changed(self, combination: Combination) -> None:
        now = combination.identity(self.of_pairs_, self.output, self.output_dtype)
        if self._fitted_on is None or agree(self._fitted_on, now):
            return
        self._fitted_on = None  # warn once
        warn(
            "this PrefixBank has changed since it was fitted: whatever was fitted on its old "
            "vectors, such as the head in a Pipeline, must be fitted again"
        )

    def _html_repr(self) -> str:  # called by scikit-learn in notebooks
        try:
            combination = self.combination()
            weights = dict(zip(combination.names, combination.weights, strict=True))
            facts = {name: prefix.facts() for name, prefix in self.prefixes.items()}
            table = bank_table(facts, weights, combination.backbone, self.combine)
        except (AttributeError, OSError, TypeError, ValueError) as error:
            table = f"<p>{escape(str(error))}</p>"
        return table + estimator_html_repr(self)

    def __copy__(self) -> Self:
        # Nothing was fitted on the vectors of a copy.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._fitted_on = None
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = self.__copy__()
        copied.__dict__.update(deepcopy(copied.__dict__, memo))
        return copied

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags
