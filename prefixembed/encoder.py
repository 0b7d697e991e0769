"""One source task: learn its prefix, turn texts into vectors, predict its labels."""

from __future__ import annotations

import os
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.encoding import report_truncated, resolve_batch_tokens
from prefixembed._embed.texts import is_pairs
from prefixembed._embed.transformer import TextTransformer
from prefixembed._fit.examples import Examples, prepare, read_rows
from prefixembed._fit.learning import (
    check_can_resume,
    kept_when_stopped,
    training_facts,
    warn_if_stuck,
)
from prefixembed._fit.objectives import OBJECTIVES
from prefixembed._fit.optimization import MAX_RATE, History, Recipe
from prefixembed._fit.predictions import SourceHeadMixin
from prefixembed._fit.prefix_learner import PrefixModel, initial_keys_values, learn_prefix, learned
from prefixembed._model.pooling import Reading
from prefixembed._utils.parameters import Count
from prefixembed.backbone import Backbone, load_backbone
from prefixembed.cache import Representation, VectorCache
from prefixembed.prefix import PAIRS, POOLINGS, Prefix

if TYPE_CHECKING:
    from typing_extensions import Self


class PrefixEncoder(SourceHeadMixin, TextTransformer):
    """Learn a prefix from one labelled source task on a frozen backbone.

    In every attention layer, tokens also attend to ``prefix_length`` trainable keys and
    values (P-Tuning v2 [2]_); these and a linear head are all that is trained. The vectors of
    :meth:`transform` serve heads for other, target tasks; the source task's own head is
    kept for :meth:`predict`.

    Parameters
    ----------
    backbone : str, default="roberta-large"
        Hub name or folder of an encoder of a supported family, see
        :func:`~prefixembed.backbone.load_backbone`. It is loaded on first use, once a process.
    revision : str, default=None
        Revision of the backbone on the Hub.
    objective : {"classification", "regression", "multilabel", "multiple_choice", \
            "token_classification"}, default="classification"
        What the source task asks for: one class a text, a number, any number of labels, the
        right one of each row's choices, or one class a word.
    prefix_length : int, default=5
        Number of key and value vectors a layer and head.
    init : {"text", "normal"}, default="text"
        Where keys and values start: the backbone's own at random tokens of training texts, or
        Gaussian noise.
    reparameterize : int, default=None
        Hidden width of an MLP that the prefix is the output of while it is trained, as in
        P-Tuning v2. It is folded away afterwards. None for no MLP.
    pooling : {"auto", "mean", "cls", "max", "last"}, default="auto"
        How token vectors become one vector a text. ``"auto"`` takes the backbone's own: what it
        was trained with, as ``modules.json`` of sentence-transformers has it, and otherwise
        ``"mean"``, or ``"last"`` where tokens see those before them alone.
    pooled_layers : int, default=1
        Number of last layers whose token vectors are averaged before they are pooled.
    pairs : {"joint", "apart"}, default="joint"
        How pairs are read. ``"joint"``: one sequence of both texts, as in the paper.
        ``"apart"``: each text by itself, and the vector of a pair is ``[u, v, |u - v|]`` of the
        two [3]_, three times as long as that of a text. Which is better depends on the backbone:
        one that was trained to embed sentences has never seen two in one sequence.
    prompt : str, default=""
        Put before each text as it is, such as the instruction that a backbone was trained with;
        before the first one of a pair that is one sequence, and before both where they are read
        apart. It counts towards `max_length`. Sentences in words take none.
    max_length : int, default=None
        Longest text in tokens, special tokens included and prefix not. None for as much as
        the backbone takes.
    learning_rate : float, default=0.01
        Peak rate of AdamW, after warm-up over a tenth of the steps and before linear decay to
        zero. Gradients are clipped at norm 1.
    weight_decay : float, default=0.0
        AdamW's weight decay on prefix and head.
    batch_size : int, default=32
        Texts a step.
    max_epochs : int, default=3
        Most passes over the training texts.
    early_stopping : bool, default=True
        Set `validation_fraction` of the training texts aside, stop when their loss has not
        become lower for `n_iter_no_change` epochs, and keep the epoch where it was lowest.
    validation_fraction : float, default=0.1
        Share of each class that is set aside. A class of one text stays in training whole.
    n_iter_no_change : int, default=2
        Epochs to wait.
    class_weight : dict or "balanced", default=None
        Weights of classes in the loss, as scikit-learn has them. For classification alone.
    checkpoint_dir : str or path-like, default=None
        Folder for the state of training: after each epoch, and about once a minute within it.
        If the process dies, the same call (same data, parameters and `random_state`) goes on from
        there and learns, on the same device, the same prefix in every bit; once it has ended,
        the same call gives what was learned at once. Runs have folders of their own in it, so
        that many can share it; nothing in it is needed after training.
    batch_tokens : int or "auto", default="auto"
        Most tokens, padding included, that go through the backbone at once. ``"auto"`` goes
        by the device. It changes speed and memory alone, to rounding in `dtype`.
    on_truncate : {"warn", "raise", "ignore", "window"}, default="warn"
        What to do when texts are longer than `max_length` and are cut. ``"window"`` cuts none but
        in :meth:`fit`: it reads them in windows of that length, of which a quarter overlaps, and
        pools their vectors. :meth:`fit` learns from their beginnings, and warns.
    random_state : int, RandomState instance or None, default=None
        Order of texts, validation split and initial prefix. An int repeats a fit exactly on
        one device, as far as its kernels repeat themselves; those of a CPU do.
    device : str, default="auto"
        ``"auto"`` takes CUDA, then MPS, then the CPU.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        What the backbone computes in, in fit and transform; prefix, head and vectors are
        float32. ``"auto"`` takes bfloat16 where the hardware has it. Gradients do not fit
        into float16: fit then computes in float32.
    output : {"texts", "words"}, default="texts"
        Whether :meth:`transform` takes texts and gives one vector a text, or takes sentences in
        words and gives one vector a word: the mean over its tokens, and zeros for a word that
        has none or was cut.
    output_dtype : {"float32", "float16", "int8", "binary"}, default="float32"
        What :meth:`transform` gives vectors as, for a store of many of them. ``"int8"`` scales
        each vector by itself, 127 for four times its root mean square. ``"binary"`` packs the
        signs of eight features into a byte, which :func:`numpy.unpackbits` unpacks.
    cache : "memory", path, VectorCache or None, default="memory"
        Where :meth:`transform` and predictions keep vectors by content, so that no text is
        encoded twice. ``"memory"`` is one :class:`VectorCache` for the whole process; the path
        of a file keeps vectors for later processes and for workers; None for no cache.
    verbose : bool or int, default=False
        Show progress bars.

    Attributes
    ----------
    prefix_ : Prefix
        What was learned, ready to be saved or put into a :class:`PrefixBank`.
    classes_ : ndarray of shape (n_classes,)
        Labels of the source task; of several labels a text, their positions. Not there for
        regression and multiple choice.
    history_ : dict of str to list of float
        One entry an epoch: ``epoch``, ``train_loss``, ``learning_rate``, ``seconds`` and, with
        early stopping, ``valid_loss`` and ``valid_accuracy``, or ``valid_r2`` of a regression.
    n_features_out_ : int
        Length of a vector; of a pair's where the source task has pairs.

    See Also
    --------
    PrefixBank : Combines the prefixes of several source tasks.
    Prefix : The value that is learned.

    Notes
    -----
    Attention of one layer and head, with queries Q, keys K and values V of the tokens and the
    prefix's P_K and P_V, is ``softmax(Q [P_K; K]^T / sqrt(d)) [P_V; V]`` [1]_.
    Positions of tokens are not shifted. The backbone's weights, gradients and modes are left
    as they were, so dropout is off in training.

    References
    ----------
    .. [1] K.-H. Huang et al., "Learning Easily Updated General Purpose Text
       Representations with Adaptable Task-Specific Prefixes", arXiv 2305.13499, 2023.
    .. [2] X. Liu et al., "P-Tuning v2", arXiv 2110.07602, 2021.
    .. [3] N. Reimers and I. Gurevych, "Sentence-BERT", arXiv 1908.10084, 2019.

    Examples
    --------
    >>> from prefixembed import PrefixEncoder
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> stars = ["good", "bad", "good", "bad"] * 8
    >>> encoder = PrefixEncoder(demo_backbone(), max_epochs=5, random_state=0)
    >>> encoder.fit(texts, stars).transform(["a fine film"]).shape
    (1, 384)
    >>> encoder.predict(["what a joy"])
    array(['good'], dtype='<U4')
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TextTransformer._parameter_constraints,
        "backbone": [str],
        "objective": [StrOptions(set(OBJECTIVES))],
        "prefix_length": [Count(1)],
        "init": [StrOptions({"text", "normal"})],
        "reparameterize": [Count(1), None],
        "prompt": [str],
        "pooling": [StrOptions({"auto", *POOLINGS})],
        "pooled_layers": [Count(1)],
        "pairs": [StrOptions(set(PAIRS))],
        "learning_rate": [Interval(Real, 0, MAX_RATE, closed="right")],
        "weight_decay": [Interval(Real, 0, MAX_RATE, closed="both")],
        "batch_size": [Count(1)],
        "max_epochs": [Count(1)],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Count(1)],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "checkpoint_dir": [str, os.PathLike, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        backbone: str = "roberta-large",
        *,
        revision: str | None = None,
        objective: str = "classification",
        prefix_length: int = 5,
        init: str = "text",
        reparameterize: int | None = None,
        pooling: str = "auto",
        pooled_layers: int = 1,
        pairs: str = "joint",
        prompt: str = "",
        max_length: int | None = None,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        batch_size: int = 32,
        max_epochs: int = 3,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 2,
        class_weight: dict[Any, float] | str | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        batch_tokens: int | str = "auto",
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
        self.init = init
        self.reparameterize = reparameterize
        self.pooling = pooling
        self.pooled_layers = pooled_layers
        self.pairs = pairs
        self.prompt = prompt
        self.max_length = max_length
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.checkpoint_dir = checkpoint_dir
        self.batch_tokens = batch_tokens
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
            Labels: two classes or more; integers, booleans, strings or whole floats. For
            regression numbers, for several labels an indicator matrix of shape (n_texts,
            n_labels), for multiple choice the position of the right one, for token
            classification one sequence of labels a sentence.
        sample_weight : array-like of shape (n_texts,), default=None
            Weights of texts in the loss. A text of weight zero is left out.

        Returns
        -------
        self : PrefixEncoder
            Fitted.

        Raises
        ------
        ValueError
            If X holds what is no text, y fewer than two classes or missing labels, lengths
            differ, or the backbone is not supported.
        FloatingPointError
            If the loss or its gradient becomes infinite or NaN.
        OSError
            If a checkpoint cannot be written.

        Warns
        -----
        ConvergenceWarning
            If the loss is still at chance at the end.
        UserWarning
            If an error or Ctrl-C stops training after an epoch or more that can be used: the
            encoder is fitted then with the best of them, and the error goes on its way.
        """
        check_can_resume(self.checkpoint_dir, self.random_state)
        rows = read_rows(self.objective, X, y, sample_weight, self.class_weight)
        random = check_random_state(self.random_state)
        rng = np.random.default_rng(random.randint(np.iinfo(np.int32).max, size=4))
        dtype = "float32" if self.dtype == "float16" else self.dtype
        backbone = load_backbone(self.backbone, self.revision, dtype, self.device)
        backbone.check_pooled_layers(self.pooled_layers)
        pooling = backbone.pooling if self.pooling == "auto" else self.pooling
        max_length = int(self.max_length or backbone.max_length)
        fraction = self.validation_fraction if self.early_stopping else None
        tokenizer = backbone.tokenizer(max_length)
        data = prepare(rows, tokenizer, fraction, rng, self.pairs, self.prompt)
        cut = data.tokens.truncated
        report_truncated(int(cut.sum()), len(cut), max_length, self.on_truncate)
        model = self._initial_model(backbone, data, rng)
        recipe = Recipe(
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            patience=self.n_iter_no_change if self.early_stopping else None,
        )
        history: History = {}

        def keep() -> None:
            prefix = Prefix(
                **learned(model, data),
                backbone=self.backbone,
                revision=self.revision,
                fingerprint=backbone.fingerprint,
                pooling=pooling,
                max_length=max_length,
                n_features=backbone.n_features,
                pooled_layers=int(self.pooled_layers),
                pairs=self.pairs if is_pairs(rows.texts) else None,
                prompt=self.prompt,
                objective=self.objective,
                training=training_facts(data, recipe, history),
            )
            self._adopt(prefix)
            self.history_ = history

        with kept_when_stopped(history, keep, self.checkpoint_dir):
            learn_prefix(
                backbone,
                data,
                model,
                recipe,
                reading=Reading(pooling, int(self.pooled_layers)),
                batch_tokens=resolve_batch_tokens(self.batch_tokens, backbone.device),
                rng=rng,
                history=history,
                progress=bool(self.verbose),
                checkpoint_dir=self.checkpoint_dir,
            )
        warn_if_stuck(history, data, self.learning_rate)
        keep()
        return self

    def transform(self, X: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Turn texts into vectors.

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
            If X holds what is no text, `out` does not fit, or the backbone is not the one that
            was fitted with.
        FloatingPointError
            If a vector is not finite, as can happen in float16.
        """
        vectors = self._vectors(X, self.output == "words", out, self.output_dtype)
        return self._in_container(vectors)

    @classmethod
    def from_prefix(cls, prefix: Prefix, **params: Any) -> Self:
        """Make a fitted encoder of a saved prefix.

        Parameters
        ----------
        prefix : Prefix
            With a head, if it is to predict.
        **params : dict
            Parameters of the encoder, such as ``device``, or ``backbone`` where it lies
            elsewhere now. Length, pooling and max_length are the prefix's own.

        Returns
        -------
        encoder : PrefixEncoder
            Fitted; it has no ``history_``.

        Raises
        ------
        ValueError
            If `params` contradict the prefix.

        Examples
        --------
        >>> from prefixembed import Prefix, PrefixEncoder
        >>> encoder = PrefixEncoder.from_prefix(Prefix.load("sst2.safetensors"))  # doctest: +SKIP
        """
        known = {
            "backbone": prefix.backbone,
            "revision": prefix.revision,
            "objective": prefix.objective,
            "prefix_length": prefix.length,
            "pooling": prefix.pooling,
            "pooled_layers": prefix.pooled_layers,
            "prompt": prefix.prompt,
            "max_length": prefix.max_length,
        }
        if prefix.pairs is not None:
            known["pairs"] = prefix.pairs
        for name in [name for name in known if name not in ("backbone", "revision")]:
            if params.get(name, known[name]) != known[name]:
                raise ValueError(
                    f"{name} is {known[name]!r} in the prefix, got {name}={params[name]!r}"
                )
        encoder = cls(**{**known, **params})
        encoder._adopt(prefix)
        return encoder

    def _adopt(self, prefix: Prefix) -> None:
        self.prefix_ = prefix
        self.__dict__.pop("classes_", None)
        if prefix.classes is not None:
            self.classes_ = prefix.classes
        self.n_features_out_ = prefix.width

    def _vectors(
        self,
        X: Any,
        words: bool = False,
        out: NDArray[Any] | None = None,
        output_dtype: str = "float32",
    ) -> NDArray[Any]:
        # transform without set_output's container.
        check_is_fitted(self)
        prefix = self.prefix_
        return self._embed(
            X, self._representation(), [prefix], prefix.n_features, self._load_checked, words, out,
            output_dtype,
        )  # fmt: skip

    def _representation(self) -> Representation:
        prefix = self.prefix_
        return Representation(
            fingerprint=prefix.fingerprint,
            prefixes=((prefix.digest, 1.0),),
            combine="concat",
            pooling=prefix.pooling,
            pooled_layers=prefix.pooled_layers,
            max_length=prefix.max_length,
            dtype=self._dtype_name(),
            first_position=prefix.first_position,
            pairs=prefix.pairs or self.pairs,
            prompt=prefix.prompt,
            windows=self.on_truncate == "window",
        )

    def _expects_pairs(self) -> bool:
        return self.prefix_.pairs is not None

    def _load_checked(self) -> Backbone:
        backbone = load_backbone(self.backbone, self.revision, self.dtype, self.device)
        backbone.check(self.prefix_, "this encoder's prefix")
        return backbone

    def _initial_model(
        self, backbone: Backbone, data: Examples, rng: np.random.Generator
    ) -> PrefixModel:
        tokens = data.tokens.take(data.texts(data.train)).sequences()
        start = initial_keys_values(backbone, tokens, self.prefix_length, self.init, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        model = PrefixModel(
            start.cpu(),
            data.tokens.vector_width(backbone.n_features),
            data.targets.n_outputs,
            self.reparameterize,
            generator,
        )
        return model.to(backbone.device)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "prefix_")
