"""Many source tasks, one forward pass, one vector a text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from html import escape
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray
from sklearn.base import _fit_context, clone
from sklearn.utils import Tags, estimator_html_repr
from sklearn.utils._param_validation import Interval, StrOptions

from prefixembed._embed.texts import PAIR_WIDTH, check_sentences, is_pairs
from prefixembed._embed.transformer import TextTransformer
from prefixembed._files.bank_table import bank_table
from prefixembed._files.saved_bank import SavedBank
from prefixembed._utils.parameters import Count
from prefixembed.backbone import Backbone, backbone_n_features, load_backbone
from prefixembed.cache import Representation, VectorCache
from prefixembed.encoder import PrefixEncoder
from prefixembed.prefix import PAIRS, POOLINGS, Prefix, check_compatible

if TYPE_CHECKING:
    from typing_extensions import Self


class PrefixBank(SavedBank, TextTransformer):
    """Combine the prefixes of several source tasks into one representation of a text.

    The prefixes were learned independently; a source task is added, replaced or removed by
    touching its prefix alone. ``fit`` trains nothing. ``transform`` costs one forward pass,
    however many prefixes there are.

    Parameters
    ----------
    prefixes : dict of str to PrefixEncoder or Prefix
        Name of a source task to its fitted encoder or its prefix. All must come from one
        backbone and one pooling of as many layers; lengths may differ. Clones hold the prefixes
        of encoders.
    active : list or tuple of str, default=None
        Which of them take part. None for all; an empty selection gives the bare backbone.
    combine : {"concat", "mean"}, default="concat"
        ``"concat"`` lays all prefixes behind each other in every layer [1]_, so that tokens
        share their attention among all of them. ``"mean"`` averages in every layer what
        attention to each prefix alone would give.
    weights : float or dict of str to float, default=None
        Factor on the attention mass of prefixes before normalisation: of all, or by name (1
        for those not named). With n prefixes concatenated, ``1 / n`` undoes that tokens lose n
        times the attention that they lost in training.
    backbone : str, default=None
        Hub name or folder. None for the one that the prefixes name; to be given where there is
        no prefix, or where the same backbone lies elsewhere.
    revision : str, default=None
        Revision on the Hub. None for the one that the prefixes name, or the newest where
        `backbone` is given.
    pooling : {"mean", "cls", "max", "last"}, default=None
        How token vectors become one vector a text. None for that of the prefixes, or
        the backbone's own where there is none.
    pooled_layers : int, default=None
        Number of last layers whose token vectors are averaged before they are pooled. None for
        that of the prefixes, or one where there is none.
    pairs : {"joint", "apart"}, default=None
        How pairs are read. ``"joint"``: one sequence of both texts, as in the paper.
        ``"apart"``: each text by itself, and the vector of a pair is ``[u, v, |u - v|]`` of the
        two [2]_, three times as long as that of a text. Which is better depends on the backbone:
        one that was trained to embed sentences has never seen two in one sequence. None for what
        the prefixes were learned with, or ``"joint"`` where none was learned on pairs.
    prompt : str, default=None
        Put before each text as it is, such as the instruction that a backbone was trained with;
        before the first one of a pair that is one sequence, and before both where they are read
        apart. It counts towards `max_length`. None for that of the prefixes, which have the same
        one, or none where there is no prefix.
    max_length : int, default=None
        Longest text in tokens. None for the largest among the prefixes, or as much as the
        backbone takes where there is none.
    batch_tokens : int or "auto", default="auto"
        Most tokens, padding included, that go through the backbone at once. ``"auto"`` goes by
        the device. It changes speed and memory alone, to rounding in `dtype`.
    on_truncate : {"warn", "raise", "ignore", "window"}, default="warn"
        What to do when texts are longer than `max_length` and are cut. ``"window"`` cuts none: it
        reads them in windows of that length, of which a quarter overlaps, and pools their vectors.
    device : str, default="auto"
        ``"auto"`` takes CUDA, then MPS, then the CPU.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        What the backbone computes in. ``"auto"`` takes bfloat16 where the hardware has it.
    output : {"texts", "words"}, default="texts"
        Whether :meth:`transform` takes texts and gives one vector a text, or takes sentences in
        words and gives one vector a word: the mean over its tokens, and zeros for a word that
        has none or was cut.
    output_dtype : {"float32", "float16", "int8", "binary"}, default="float32"
        What :meth:`transform` gives vectors as, for a store of many of them. ``"int8"`` scales
        each vector by itself, 127 for four times its root mean square. ``"binary"`` packs the
        signs of eight features into a byte, which :func:`numpy.unpackbits` unpacks.
    cache : "memory", path, VectorCache or None, default="memory"
        Where vectors are kept by content, so that no text is encoded twice. ``"memory"`` is
        one :class:`VectorCache` for the whole process; the path of a file keeps vectors for
        later processes and for workers; None for no cache.
    verbose : bool or int, default=False
        Show a progress bar.

    Attributes
    ----------
    n_features_out_ : int
        Length of a vector.

    See Also
    --------
    PrefixEncoder : Learns a prefix from one source task.
    prefix_subsets : Selections of a bank for a grid search.

    Notes
    -----
    With softmax mass ``Z_x`` over the tokens, ``Z_t`` over prefix t times its weight, and
    attention ``o_x``, ``o_t`` to either alone, a layer's output is ``(Z_x o_x + sum_t Z_t o_t)
    / (Z_x + sum_t Z_t)`` with ``"concat"`` [1]_ and the mean over t of
    ``(Z_x o_x + Z_t o_t) / (Z_x + Z_t)`` with ``"mean"``. Prefixes have no position, so their
    order does not matter. A bank of one gives its encoder's vectors.

    A bank is stateless: `transform` works without `fit`. Pickles and clones of it hold the
    prefixes and the backbone's name, never its weights.

    References
    ----------
    .. [1] K.-H. Huang et al., "Learning Easily Updated General Purpose Text
       Representations with Adaptable Task-Specific Prefixes", arXiv 2305.13499, 2023.
    .. [2] N. Reimers and I. Gurevych, "Sentence-BERT", arXiv 1908.10084, 2019.

    Examples
    --------
    >>> from prefixembed import PrefixBank, PrefixEncoder
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_epochs=5, random_state=0)
    >>> encoder = encoder.fit(texts, [1, 0, 1, 0] * 8)
    >>> bank = PrefixBank({"stars": encoder})
    >>> bank.transform(["a fine film", "a dud"]).shape
    (2, 384)
    >>> list(bank.add("more stars", encoder.prefix_).remove("stars"))
    ['more stars']
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TextTransformer._parameter_constraints,
        "prefixes": [dict],
        "active": [list, tuple, None],
        "combine": [StrOptions({"concat", "mean"})],
        "weights": [Interval(Real, 0, None, closed="neither"), dict, None],
        "backbone": [str, None],
        "pooling": [StrOptions(set(POOLINGS)), None],
        "pooled_layers": [Count(1), None],
        "pairs": [StrOptions(set(PAIRS)), None],
        "prompt": [str, None],
    }

    _fitted_on_pairs = False

    def __init__(
        self,
        prefixes: dict[str, PrefixEncoder | Prefix],
        *,
        active: list[str] | tuple[str, ...] | None = None,
        combine: str = "concat",
        weights: float | dict[str, float] | None = None,
        backbone: str | None = None,
        revision: str | None = None,
        pooling: str | None = None,
        pooled_layers: int | None = None,
        pairs: str | None = None,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | str = "auto",
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
        self.on_truncate = on_truncate
        self.device = device
        self.dtype = dtype
        self.output = output
        self.output_dtype = output_dtype
        self.cache = cache
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Check parameters and texts; nothing is trained and nothing loaded.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts.
        y : Ignored
            Not used, present for API consistency.

        Returns
        -------
        self : PrefixBank
            Itself.

        Raises
        ------
        ValueError
            If prefixes do not fit each other, names are unknown, or X holds what is no text.
        """
        self._check()
        self._fitted_on_pairs = is_pairs(check_sentences(X, self.output == "words"))
        return self

    def transform(self, X: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Turn texts into vectors, in one forward pass.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2), or iterator
            Texts, or pairs of texts; with ``output="words"`` sentences as sequences of words. Of
            an iterator, a bounded number is held at a time.
        out : ndarray of shape (n_texts, n_features), default=None
            Where to write, such as a :class:`numpy.memmap`. Beside an iterator it may have
            rows to spare. Binary vectors have ``ceil(n_features / 8)`` columns.

        Returns
        -------
        vectors : ndarray of shape (n_texts, n_features), or (n_words, n_features)
            In `output_dtype` and input order; independent of what else is in `X`, to rounding
            in `dtype`. Where `out` is given, its rows that were written to.

        Raises
        ------
        ValueError
            If a parameter is wrong, prefixes do not fit each other or the backbone, `out` does
            not fit, or X holds what is no text.
        FloatingPointError
            If a vector is not finite, as can happen in float16.
        """
        self._validate_params()
        known = self._check()
        words = self.output == "words"
        facts: Prefix | Backbone = next(iter(known.values())) if known else self._load_checked()
        vectors = self._embed(
            X, self._representation(), self._active_prefixes(), facts.n_features,
            self._load_checked, words, out, self.output_dtype,
        )  # fmt: skip
        return self._in_container(vectors)

    def _representation(self) -> Representation:
        known = self._check()
        # A prefix tells what its backbone must be, without loading it.
        facts: Prefix | Backbone = next(iter(known.values())) if known else self._load_checked()
        return Representation(
            fingerprint=facts.fingerprint,
            prefixes=tuple((known[key].digest, self._weight(key)) for key in self._in_order(known)),
            combine=self.combine,
            pooling=self.pooling or facts.pooling,
            pooled_layers=int(
                self.pooled_layers or next((p.pooled_layers for p in known.values()), 1)
            ),
            max_length=int(
                self.max_length
                or max((p.max_length for p in known.values()), default=facts.max_length)
            ),
            dtype=self._dtype_name(),
            first_position=next(
                (known[name].first_position for name in self._active_names(known)), 0
            ),
            pairs=self._pairs(known),
            prompt=self._prompt(known),
            windows=self.on_truncate == "window",
        )

    def _expects_pairs(self) -> bool:
        return self._fitted_on_pairs

    def _in_order(self, known: Mapping[str, Prefix]) -> list[str]:
        # One order for one content: equal banks give equal bits, whatever the dict's order.
        return sorted(self._active_names(known), key=lambda key: known[key].digest)

    def _active_prefixes(self) -> list[Prefix]:
        known = self._check()
        return [known[key] for key in self._in_order(known)]

    def _load_checked(self) -> Backbone:
        known = self._check()
        backbone = load_backbone(*self._backbone_name(known), self.dtype, self.device)
        for key, prefix in known.items():
            backbone.check(prefix, f"prefix {key!r}")
        return backbone

    def add(self, name: str, prefix: PrefixEncoder | Prefix) -> Self:
        """Add a source task, or replace the one of that name.

        Parameters
        ----------
        name : str
            What to call it. Where `active` is a selection, it joins the selection.
        prefix : PrefixEncoder or Prefix
            Fitted.

        Returns
        -------
        self : PrefixBank
            With one more prefix; the dict that the constructor got is left alone.

        Raises
        ------
        ValueError
            If the prefix does not fit the others; the bank is then as it was.
        """
        prefixes = {**self.prefixes, name: prefix}
        self._known(prefixes)
        self.prefixes = prefixes
        if self.active is not None and name not in self.active:
            self.active = [*self.active, name]
        return self

    def remove(self, *names: str) -> Self:
        """Remove source tasks.

        Parameters
        ----------
        *names : str
            Which. Where `active` is a selection, they leave the selection too.

        Returns
        -------
        self : PrefixBank
            With fewer prefixes; the dict that the constructor got is left alone.

        Raises
        ------
        KeyError
            If there is no prefix of that name.
        ValueError
            If none would be left and the bank does not know its backbone otherwise.
        """
        for name in names:
            self[name]
        left = {name: prefix for name, prefix in self.prefixes.items() if name not in names}
        if not left and names and self.backbone is None:
            raise ValueError(
                f"removing {', '.join(map(repr, names))} leaves no prefix to name the backbone: "
                "set the bank's backbone parameter first, or use active=[]"
            )
        self.prefixes = left
        if self.active is not None:
            self.active = [name for name in self.active if name not in names]
        if isinstance(self.weights, dict):
            self.weights = {k: w for k, w in self.weights.items() if k not in names}
        return self

    def without(self, *names: str) -> Self:
        """Give a copy that lacks source tasks; the bank itself stays as it is.

        Parameters
        ----------
        *names : str
            Which, as in :meth:`remove`.

        Returns
        -------
        bank : PrefixBank
            A clone with fewer prefixes.
        """
        return clone(self).remove(*names)

    def __getitem__(self, name: str) -> Prefix:
        try:
            prefix = self.prefixes[name]
        except KeyError:
            raise KeyError(f"no prefix {name!r}; there are {list(self.prefixes)}") from None
        return as_prefix(name, prefix)

    def __contains__(self, name: object) -> bool:
        return name in self.prefixes

    def __iter__(self) -> Iterator[str]:
        return iter(self.prefixes)

    def __len__(self) -> int:
        return len(self.prefixes)

    def __bool__(self) -> bool:
        # An empty bank is the bare backbone, not nothing.
        return True

    def keys(self) -> list[str]:
        """Names of the source tasks, active or not.

        Returns
        -------
        names : list of str
            In the bank's order.
        """
        return list(self.prefixes)

    def values(self) -> list[Prefix]:
        """Prefixes of the source tasks, active or not.

        Returns
        -------
        prefixes : list of Prefix
            In the bank's order.
        """
        return [self[name] for name in self.prefixes]

    def items(self) -> list[tuple[str, Prefix]]:
        """Names and prefixes of the source tasks, active or not.

        Returns
        -------
        items : list of (str, Prefix)
            In the bank's order.
        """
        return [(name, self[name]) for name in self.prefixes]

    @property
    def n_features_out_(self) -> int:
        """Length of a vector: that of a text, or of a pair where `fit` has seen pairs.

        Where there is no prefix, the backbone's configuration is asked.
        """
        known = self._known(self.prefixes)
        n_features = next(
            (prefix.n_features for prefix in known.values()), None
        ) or backbone_n_features(*self._backbone_name({}))
        apart = self._fitted_on_pairs and self._pairs(known) == "apart"
        return n_features * (PAIR_WIDTH if apart else 1)

    def _check(self) -> dict[str, Prefix]:
        known = self._known(self.prefixes)
        self._pairs(known)
        self._backbone_name(known)
        self._active_names(known)
        if isinstance(self.weights, dict):
            for name, weight in self.weights.items():
                if name not in known:
                    raise ValueError(f"weights has {name!r}, which is none of {list(known)}")
                if not isinstance(weight, Real) or not 0 < weight < math.inf:
                    raise ValueError(f"weights[{name!r}] must be a number above 0, got {weight!r}")
        return known

    def _pairs(self, known: Mapping[str, Prefix]) -> str:
        if self.pairs is not None:
            return self.pairs
        learned = {prefix.pairs: name for name, prefix in known.items() if prefix.pairs}
        if len(learned) > 1:
            raise ValueError(
                f"pairs must be 'joint' or 'apart', got None, which takes what prefixes were "
                f"learned with: {learned['joint']!r} with 'joint', {learned['apart']!r} with "
                "'apart'"
            )
        return next(iter(learned), "joint")

    def _prompt(self, known: Mapping[str, Prefix]) -> str:
        if self.prompt is not None:
            return self.prompt
        return next((prefix.prompt for prefix in known.values()), "")

    @staticmethod
    def _known(prefixes: Mapping[str, PrefixEncoder | Prefix]) -> dict[str, Prefix]:
        known = {name: as_prefix(name, value) for name, value in prefixes.items()}
        check_compatible(known)
        return known

    def _active_names(self, known: Mapping[str, Prefix]) -> list[str]:
        if self.active is None:
            return list(known)
        names = list(self.active)
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise ValueError(f"active has {name!r}, which is none of {list(known)}")
        if len(set(names)) < len(names):
            raise ValueError(f"active has a name twice: {names}")
        return names

    def _weight(self, name: str) -> float:
        if isinstance(self.weights, dict):
            return float(self.weights.get(name, 1.0))
        return 1.0 if self.weights is None else float(self.weights)

    def _backbone_name(self, known: Mapping[str, Prefix]) -> tuple[str, str | None]:
        prefix = next(iter(known.values()), None)
        if self.backbone is not None:
            return self.backbone, self.revision
        if prefix is None:
            raise ValueError("backbone must be given where there is no prefix to name it")
        return prefix.backbone, self.revision or prefix.revision

    def _html_repr(self) -> str:
        # For notebooks: what it holds, above scikit-learn's table of parameters.
        try:
            known = self._check()
            table = bank_table(
                known,
                self._active_names(known),
                {name: self._weight(name) for name in known},
                self._backbone_name(known)[0],
                self.combine,
            )
        except (AttributeError, TypeError, ValueError) as error:
            table = f"<p>{escape(str(error))}</p>"
        return table + estimator_html_repr(self)

    def __sklearn_clone__(self) -> Self:
        # scikit-learn clones the values of a dict one by one, and a cloned encoder has lost its
        # fit. A prefix has none to lose.
        bank = object.__new__(type(self))
        bank.__dict__.update(self.__dict__)
        bank.prefixes = {
            name: getattr(value, "prefix_", value) for name, value in self.prefixes.items()
        }
        return super(PrefixBank, bank).__sklearn_clone__()

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


def as_prefix(name: str, prefix: PrefixEncoder | Prefix) -> Prefix:
    """Give the prefix of a dict's value.

    Parameters
    ----------
    name : str
        What the message calls it.
    prefix : PrefixEncoder or Prefix
        Fitted.

    Returns
    -------
    prefix : Prefix
        What was learned.

    Raises
    ------
    ValueError
        If the name is no str, or the value no prefix and no fitted encoder.
    """
    if not isinstance(name, str):
        raise ValueError(f"prefixes must have names that are str, got {name!r}")
    if isinstance(prefix, Prefix):
        return prefix
    if not isinstance(prefix, PrefixEncoder):
        raise ValueError(
            f"prefixes[{name!r}] must be a PrefixEncoder or a Prefix, got {type(prefix).__name__}"
        )
    if not hasattr(prefix, "prefix_"):
        raise ValueError(
            f"prefixes[{name!r}] is a PrefixEncoder that is not fitted; "
            "where a fitted one was cloned, pass its prefix_ instead"
        )
    fitted: Prefix = prefix.prefix_
    return fitted
