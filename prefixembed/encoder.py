"""One source task: learn its prefix, turn texts into vectors, predict its labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import _fit_context
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.texts import is_pairs
from prefixembed._fit.background import resolve_background
from prefixembed._fit.convergence import warn_after_training
from prefixembed._fit.encoder_params import PRESETS, learning_rates, recorded_params
from prefixembed._fit.examples import read_rows
from prefixembed._fit.learning import check_can_resume, training_facts
from prefixembed._fit.objectives import OBJECTIVES
from prefixembed._fit.predictions import SourceHeadMixin
from prefixembed._fit.prefix_learner import PrefixLearner
from prefixembed._fit.transformer import LearningTransformer
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import Count, Number
from prefixembed.backbone import load_backbone
from prefixembed.bank import PrefixBank
from prefixembed.cache import VectorCache
from prefixembed.prefix import Prefix

if TYPE_CHECKING:
    from typing_extensions import Self

_REMEMBERED_FITS = 256


@substitute
class PrefixEncoder(SourceHeadMixin, LearningTransformer):
    """Learn a prefix from one labelled source task on a frozen backbone.

    A prefix extends the two memories of each layer of the backbone: the feed-forward layer by
    ``ffn_length`` trainable hidden units, called slots, and attention by ``prefix_length``
    trainable keys and values (P-Tuning v2 [3]_), which are the method of the paper [1]_. These and
    a linear head are all that is trained. The vectors of
    :meth:`transform` serve heads for other tasks, the target tasks. The head of the source task is
    kept for :meth:`predict`.

    Read more in the :doc:`user guide </guide/encoder>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    backbone : str or path-like, default="roberta-large"
        Hub name or folder of an encoder of a supported family; see :func:`load_backbone`. It is
        loaded on first use, once per process.
    $revision
    objective : {"classification", "regression", "multilabel", "multiple_choice", \
            "token_classification"}, default="classification"
        What the source task predicts:

        - ``"classification"``: one class per text;
        - ``"regression"``: a number per text;
        - ``"multilabel"``: any number of labels per text;
        - ``"multiple_choice"``: which of the choices of each row is right;
        - ``"token_classification"``: one class per word.
    prefix_length : int, default=0
        Number of key and value vectors per layer and head. The paper has 5.
    ffn_length : int, default=16
        Number of slots per feed-forward layer. 0 for none, as in the paper.
    init : {"text", "normal"}, default="text"
        Initial keys and values:

        - ``"text"``: those of the backbone at random tokens of training texts;
        - ``"normal"``: Gaussian noise.
    reparameterize : int, default=None
        Hidden width of an MLP that computes the prefix during training, as in P-Tuning v2. It is
        not needed afterwards. None for no MLP.
    $dropout
    $background
    $background_weight
    $pooling
    $pooled_layers
    $pairs
    $prompt
    $max_length
    $prefix_learning_rate
    weight_decay : float, default=0.0
        Weight decay of AdamW, for prefix and head.
    $batch_size
    $max_steps
    $early_stopping
    $validation_fraction
    $n_iter_no_change
    $class_weight
    $checkpoint_dir
    $batch_tokens
    $batch_invariant
    $on_truncate
    $random_state
    $device
    $dtype
    $output
    $output_dtype
    $cache
    $verbose

    Attributes
    ----------
    prefix_ : Prefix
        What was learned. It can be saved, or put into a :class:`PrefixBank`.
    prefixes_ : tuple of Prefix
        What each call of :meth:`fit` of this object learned, the last one last; at most 256.
        A pickle keeps only the last one.
    classes_ : ndarray of shape (n_classes,)
        Labels of the source task; for multilabel, their positions. Regression and multiple choice
        have none.
    history_ : dict of str to list of float
        One entry per evaluation: ``step`` (number of steps so far), ``train_loss`` (weighted mean
        since the entry before), ``learning_rate``, ``seconds`` and, with early stopping,
        ``valid_loss`` and ``valid_accuracy``. For regression, ``valid_r2`` of two texts or more.
    n_features_out_ : int
        Width of the vectors of the kind of texts that `fit` has seen.

    See Also
    --------
    PrefixBank : Combines the prefixes of several source tasks.
    Prefix : The value that is learned.

    Notes
    -----
    With queries Q, keys K and values V of the tokens, and keys P_K and values P_V of the prefix,
    attention of one layer and head is ``softmax(Q [P_K; K]^T / sqrt(d)) [P_V; V]`` [1]_. Nothing of
    the backbone changes, and its own dropout is off.

    References
    ----------
    $paper
    $sentence_bert
    .. [3] Liu, X., et al., "P-Tuning v2", arXiv 2110.07602, 2021.

    Examples
    --------
    >>> from prefixembed import PrefixEncoder
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> stars = ["good", "bad", "good", "bad"] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_steps=5, random_state=0)
    >>> encoder.fit(texts, stars).transform(["a fine film"]).shape
    (1, 384)
    >>> encoder.predict(["what a joy"])
    array(['good'], dtype='<U4')
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **LearningTransformer._parameter_constraints,
        "objective": [StrOptions(set(OBJECTIVES))],
        "prefix_length": [Count(0)],
        "ffn_length": [Count(0)],
        "init": [StrOptions({"text", "normal"})],
        "reparameterize": [Count(1), None],
        "dropout": [Number(0, 1, closed="left")],
        "background": [StrOptions({"auto"}), "array-like", None],
        "background_weight": [Number(0, None, closed="left")],
        "learning_rate": [
            *LearningTransformer._parameter_constraints["learning_rate"],
            StrOptions({"auto"}),
        ],
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }

    def __init__(
        self,
        backbone: str | os.PathLike[str] = "roberta-large",
        *,
        revision: str | None = None,
        objective: str = "classification",
        prefix_length: int = 0,
        ffn_length: int = 16,
        init: str = "text",
        reparameterize: int | None = None,
        dropout: float = 0.0,
        background: Sequence[str] | str | None = "auto",
        background_weight: float = 10.0,
        pooling: str = "auto",
        pooled_layers: int = 1,
        pairs: str = "auto",
        prompt: str | None = None,
        max_length: int | None = None,
        learning_rate: float | str = "auto",
        weight_decay: float = 0.0,
        batch_size: int = 32,
        max_steps: int | str = "auto",
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        class_weight: dict[Any, float] | str | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        batch_tokens: int | str = "auto",
        batch_invariant: bool = False,
        on_truncate: str = "warn",
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        dtype: str = "auto",
        output: str = "texts",
        output_dtype: str = "float32",
        cache: str | os.PathLike[str] | VectorCache | None = "memory",
        verbose: bool | int = False,
    ) -> None:
        self.backbone = backbone
        self.revision = revision
        self.objective = objective
        self.prefix_length = prefix_length
        self.ffn_length = ffn_length
        self.init = init
        self.reparameterize = reparameterize
        self.dropout = dropout
        self.background = background
        self.background_weight = background_weight
        self.pooling = pooling
        self.pooled_layers = pooled_layers
        self.pairs = pairs
        self.prompt = prompt
        self.max_length = max_length
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.checkpoint_dir = checkpoint_dir
        self.batch_tokens = batch_tokens
        self.batch_invariant = batch_invariant
        self.on_truncate = on_truncate
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.output = output
        self.output_dtype = output_dtype
        self.cache = cache
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learn the prefix and the head of a source task.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts. For multiple choice, rows of a context and a sequence of
            choices; for token classification, sentences as sequences of words.
        y : array-like of shape (n_texts,)
            Labels, depending on `objective`:

            - classification: two classes or more, as integers, booleans, strings or whole floats;
            - regression: numbers;
            - multilabel: an indicator matrix of shape (n_texts, n_labels);
            - multiple choice: the position of the right choice of each row;
            - token classification: one sequence of labels per sentence.
        sample_weight : array-like of shape (n_texts,), default=None
            Weights of texts in the loss. A text of weight zero is left out.

        Returns
        -------
        self : PrefixEncoder
            Fitted encoder.

        Raises
        ------
        ValueError
            If `X` holds something that is not a text, labels are missing or have a single class,
            lengths differ, the backbone is not supported, or texts cannot be read as the
            parameters say.
        FloatingPointError
            If the loss or its gradient becomes infinite or NaN.
        OSError
            If a checkpoint cannot be written.

        Warns
        -----
        ConvergenceWarning
            If the training loss or the validation loss is never below that at chance, or if the
            validation loss is still falling at the end.
        UserWarning
            If classes are too small to be validated, or an error or Ctrl-C stops training. The
            error is re-raised. If there was an evaluation with validation, the encoder holds the
            best state so far; otherwise, after Ctrl-C, the last one.
        """
        if not self.prefix_length and not self.ffn_length:
            raise ValueError("prefix_length and ffn_length cannot both be 0")
        check_can_resume(self.checkpoint_dir, self.random_state)
        background = resolve_background(self.background, self.background_weight, self.ffn_length)
        rows = read_rows(self.objective, X, y, sample_weight, self.class_weight)
        rng = self._make_rng()
        dtype = "float32" if self.dtype == "float16" else self.dtype
        backbone = load_backbone(self.backbone, self.revision, dtype, self.device)
        tasks, reading = self._prepare({"": rows}, backbone, rng)
        data = tasks[""]
        rate, slot_rate = learning_rates(self.learning_rate)
        learner = PrefixLearner(
            backbone,
            data,
            reading,
            prefix_length=self.prefix_length,
            ffn_length=self.ffn_length,
            init=self.init,
            reparameterize=self.reparameterize,
            slot_rate=slot_rate,
            dropout=float(self.dropout),
            background=background,
            background_weight=float(self.background_weight),
            rng=rng,
        )
        recipe = self._recipe(tasks, rate)
        outcome = self._train(tasks, learner, recipe, backbone, rng)
        if outcome.is_usable:
            prefix = Prefix(
                backbone=os.fspath(self.backbone),
                revision=self.revision,
                reading=reading if is_pairs(rows.texts) else replace(reading, pairs=None),
                training=training_facts(data, recipe, outcome.history),
                **learner.learned(),
            )
            self._keep(prefix)
            self.history_ = outcome.history
        outcome.reraise(self.checkpoint_dir)
        warn_after_training(outcome.history, tasks, recipe)
        return self

    @classmethod
    def preset(
        cls, name: str, backbone: str | os.PathLike[str] = "roberta-large", **params: Any
    ) -> Self:
        """Make an encoder with the parameters of a published method.

        Parameters
        ----------
        name : {"paper"}
            ``"paper"`` is the method of arXiv 2305.13499: keys and values in attention alone, which
            start from noise (P-Tuning v2), and pairs read as one sequence.
        backbone : str or path-like, default="roberta-large"
            Hub name or folder of the backbone.
        **params : dict
            Parameters that add to or replace those of the preset.

        Returns
        -------
        encoder : PrefixEncoder
            Encoder that is not fitted.

        Raises
        ------
        ValueError
            If there is no such preset.

        Examples
        --------
        >>> from prefixembed import PrefixEncoder
        >>> PrefixEncoder.preset("paper", max_length=128).ffn_length
        0
        """
        if name not in PRESETS:
            raise ValueError(f"name must be one of {sorted(PRESETS)}, got {name!r}")
        return cls(backbone, **{**PRESETS[name], **params})

    @classmethod
    def from_prefix(cls, prefix: Prefix, **params: Any) -> Self:
        """Make a fitted encoder from a saved prefix.

        Parameters
        ----------
        prefix : Prefix
            The prefix. It needs a head for predictions.
        **params : dict
            Parameters of the encoder, such as ``device``, or ``backbone`` if the backbone has
            moved. What the prefix records, such as its length and reading, cannot be changed.

        Returns
        -------
        encoder : PrefixEncoder
            Fitted encoder, without ``history_``.

        Raises
        ------
        ValueError
            If a parameter is wrong, or contradicts the prefix.

        Examples
        --------
        >>> from prefixembed import Prefix, PrefixEncoder
        >>> encoder = PrefixEncoder.from_prefix(Prefix.load("sst2.safetensors"))  # doctest: +SKIP
        """
        recorded = recorded_params(prefix, cls._get_param_names(), params)
        where = {"backbone": prefix.backbone, "revision": prefix.revision}
        encoder = cls(**{**where, **recorded, **params})
        encoder._validate_params()
        encoder._keep(prefix)
        return encoder

    def as_bank(self) -> PrefixBank:
        """Return the bank of the encoder's one prefix, whose vectors `transform` returns.

        Returns
        -------
        bank : PrefixBank
            It reads texts as the prefix was learned, computes and caches as the encoder says, and
            does not change if the encoder does.
        """
        check_is_fitted(self)
        bank = PrefixBank(
            {"prefix": self.prefix_},
            backbone=self.backbone,
            revision=self.revision,
            pairs="auto" if self.prefix_.of_pairs else self.pairs,
            **self._running_params(),
        )
        bank.of_pairs_ = self.prefix_.of_pairs
        return bank

    def _keep(self, prefix: Prefix) -> None:
        self.prefix_ = prefix
        self.prefixes_ = (*getattr(self, "prefixes_", ()), prefix)[-_REMEMBERED_FITS:]
        self.__dict__.pop("classes_", None)
        if prefix.classes is not None:
            self.classes_ = prefix.classes
        self.n_features_out_ = prefix.width

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "prefixes_": state["prefixes_"][-1:]} if "prefixes_" in state else state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "prefix_")
