"""The paper's rival: one backbone, fine-tuned on all source tasks together, then frozen."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.encoding import (
    report_truncated,
    resolve_batch_tokens,
)
from prefixembed._embed.texts import check_rows
from prefixembed._embed.transformer import TextTransformer
from prefixembed._fit.examples import check_tasks, prepare, read_rows
from prefixembed._fit.fine_tuning import fine_tune, pack_backbone, trainable_copy, write_backbone
from prefixembed._fit.learning import check_can_resume, kept_when_stopped
from prefixembed._fit.objectives import OBJECTIVES
from prefixembed._fit.optimization import MAX_RATE, History, Recipe
from prefixembed._model.devices import resolve_device, resolve_dtype
from prefixembed._model.own_reading import pooling_files
from prefixembed._model.pooling import Reading
from prefixembed._utils.parameters import Count
from prefixembed.backbone import (
    Backbone,
    load_backbone,
    read_backbone,
)
from prefixembed.cache import Representation, VectorCache
from prefixembed.prefix import PAIRS, POOLINGS

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class TaskHead:
    """The linear head of one source task.

    Parameters
    ----------
    objective : str
        What the task asks for.
    classes : ndarray of shape (n_classes,) or None
        Labels, in the order of the head's outputs.
    weight : ndarray of shape (n_outputs, n_features)
        Weight of the head.
    bias : ndarray of shape (n_outputs,)
        Bias of the head.
    """

    objective: str
    classes: NDArray[Any] | None
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class MultiTaskEncoder(TextTransformer):
    """Fine-tune a copy of a whole backbone on several source tasks together, then freeze it.

    The way of making general representations that prefixes are an alternative to [1]_: each
    step is one batch of one task, with a linear head a task, and gradients reach every weight.
    A source task cannot be removed afterwards, and adding one means training again. With one
    task it is plain fine-tuning.

    Parameters
    ----------
    backbone : str, default="roberta-large"
        Hub name or folder of an encoder of a supported family. Its own weights are left alone.
    revision : str, default=None
        Revision of the backbone on the Hub.
    objectives : dict of str to str, default=None
        What tasks ask for, by name, as :class:`PrefixEncoder`'s ``objective``; those that are not
        named are classifications.
    temperature : float, default=1.0
        How tasks are mixed: each gets a share of the steps in proportion to its number of
        texts to the power ``1 / temperature``. One mixes in proportion to size; infinity gives
        each task as many steps.
    pooling : {"auto", "mean", "cls", "max", "last"}, default="auto"
        How token vectors become one vector a text. ``"auto"`` takes the backbone's own: what it
        was trained with, as ``modules.json`` of sentence-transformers has it, and otherwise
        ``"mean"``, or ``"last"`` where tokens see those before them alone.
    pooled_layers : int, default=1
        Number of last layers whose token vectors are averaged before they are pooled.
    pairs : {"joint", "apart"}, default="joint"
        How pairs are read. ``"joint"``: one sequence of both texts, as in the paper.
        ``"apart"``: each text by itself, and the vector of a pair is ``[u, v, |u - v|]`` of the
        two [2]_, three times as long as that of a text. Which is better depends on the backbone:
        one that was trained to embed sentences has never seen two in one sequence.
    prompt : str, default=""
        Put before each text as it is, such as the instruction that a backbone was trained with;
        before the first one of a pair that is one sequence, and before both where they are read
        apart. It counts towards `max_length`. Sentences in words take none.
    max_length : int, default=None
        Longest text in tokens. None for as much as the backbone takes.
    learning_rate : float, default=5e-5
        Peak rate of AdamW, after warm-up over a tenth of the steps and before linear decay to
        zero. Gradients are clipped at norm 1.
    head_learning_rate : float, default=1e-3
        The same for the heads, which start at zero.
    weight_decay : float, default=0.01
        AdamW's weight decay.
    batch_size : int, default=32
        Texts a step.
    max_epochs : int, default=3
        Most epochs; an epoch has as many steps as it takes to see every text once where tasks
        are mixed in proportion.
    early_stopping : bool, default=True
        Set `validation_fraction` of the training texts aside, stop when their loss, averaged
        over tasks, has not become lower for `n_iter_no_change` epochs, and keep the epoch where
        it was lowest.
    validation_fraction : float, default=0.1
        Share that is set aside.
    n_iter_no_change : int, default=2
        Epochs to wait.
    checkpoint_dir : str or path-like, default=None
        Folder for the state of training, as :class:`PrefixEncoder` has it; each file takes four
        times the memory of the backbone, and there are two.
    batch_tokens : int or "auto", default="auto"
        Most tokens, padding included, that go through the backbone at once.
    on_truncate : {"warn", "raise", "ignore", "window"}, default="warn"
        What to do when texts are longer than `max_length` and are cut; ``"window"`` as in
        :class:`PrefixEncoder`.
    random_state : int, RandomState instance or None, default=None
        Order of texts, validation split and dropout. For dropout, torch's random state of the
        device and of the CPU is set during fit and put back afterwards.
    device : str, default="auto"
        ``"auto"`` takes CUDA, then MPS, then the CPU.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        What the backbone computes in. In fit weights stay in float32, and products are in
        bfloat16 where this says so.
    output : {"texts", "words"}, default="texts"
        Whether :meth:`transform` gives one vector a text or one a word.
    output_dtype : {"float32", "float16", "int8", "binary"}, default="float32"
        What :meth:`transform` gives vectors as.
    cache : "memory", path, VectorCache or None, default="memory"
        Where vectors are kept by content.
    verbose : bool or int, default=False
        Show progress bars.

    Attributes
    ----------
    backbone_ : Backbone
        What was learned, frozen.
    heads_ : dict of str to TaskHead
        The head of each source task.
    history_ : dict of str to list of float
        One entry an epoch: ``epoch``, ``train_loss``, ``learning_rate``, ``seconds`` and, with
        early stopping, ``valid_loss`` and, by task, ``valid_loss[name]`` and
        ``valid_accuracy[name]``, or ``valid_r2[name]``; of one task without its name.
    n_features_out_ : int
        Length of the vector of a text.

    See Also
    --------
    PrefixEncoder : Learns one task and leaves the backbone alone.
    PrefixBank : Combines what was learned from several.

    Notes
    -----
    A pickle holds the whole backbone. :meth:`save` writes it as a folder that
    :func:`load_backbone` and other libraries take, so that prefixes can be learned on top of it.

    References
    ----------
    .. [1] K.-H. Huang et al., "Learning Easily Updated General Purpose Text
       Representations with Adaptable Task-Specific Prefixes", arXiv 2305.13499, 2023.
    .. [2] N. Reimers and I. Gurevych, "Sentence-BERT", arXiv 1908.10084, 2019.

    Examples
    --------
    >>> from prefixembed import MultiTaskEncoder
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> tasks = {"stars": (texts, [1, 0, 1, 0] * 8), "long": (texts, [0, 1, 0, 0] * 8)}
    >>> encoder = MultiTaskEncoder(demo_backbone(), max_epochs=2, random_state=0).fit(tasks)
    >>> encoder.transform(["a fine film"]).shape
    (1, 384)
    >>> encoder.predict(["what a joy"], "stars")
    array([1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TextTransformer._parameter_constraints,
        "backbone": [str],
        "objectives": [dict, None],
        "temperature": [Interval(Real, 1, None, closed="both")],
        "prompt": [str],
        "pooling": [StrOptions({"auto", *POOLINGS})],
        "pooled_layers": [Count(1)],
        "pairs": [StrOptions(set(PAIRS))],
        "learning_rate": [Interval(Real, 0, MAX_RATE, closed="right")],
        "head_learning_rate": [Interval(Real, 0, MAX_RATE, closed="right")],
        "weight_decay": [Interval(Real, 0, MAX_RATE, closed="both")],
        "batch_size": [Count(1)],
        "max_epochs": [Count(1)],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Count(1)],
        "checkpoint_dir": [str, os.PathLike, None],
        "random_state": ["random_state"],
    }

    # `tasks` is what fit learns from, and no metadata to route.
    __metadata_request__fit: ClassVar[dict[str, str]] = {"tasks": UNUSED}

    def __init__(
        self,
        backbone: str = "roberta-large",
        *,
        revision: str | None = None,
        objectives: dict[str, str] | None = None,
        temperature: float = 1.0,
        pooling: str = "auto",
        pooled_layers: int = 1,
        pairs: str = "joint",
        prompt: str = "",
        max_length: int | None = None,
        learning_rate: float = 5e-5,
        head_learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 32,
        max_epochs: int = 3,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 2,
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
        self.objectives = objectives
        self.temperature = temperature
        self.pooling = pooling
        self.pooled_layers = pooled_layers
        self.pairs = pairs
        self.prompt = prompt
        self.max_length = max_length
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
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
    def fit(self, tasks: Mapping[str, tuple[Any, ...]], y: Any = None) -> Self:
        """Learn all source tasks together.

        Parameters
        ----------
        tasks : mapping of str to tuple
            Name of each source task to ``(X, y)`` or ``(X, y, sample_weight)``, as
            :meth:`PrefixEncoder.fit` takes them.
        y : Ignored
            Labels are in `tasks`.

        Returns
        -------
        self : MultiTaskEncoder
            Fitted.

        Raises
        ------
        ValueError
            If a task is no such tuple, an objective is unknown, or rows and labels are not
            what it wants.
        FloatingPointError
            If the loss or its gradient becomes infinite or NaN.
        OSError
            If a checkpoint cannot be written.

        Warns
        -----
        UserWarning
            If an error or Ctrl-C stops training after an epoch or more that can be used: the
            encoder is fitted then with the best of them, and the error goes on its way.
        """
        if not check_tasks(tasks):
            raise ValueError("tasks must have one source task or more, got none")
        check_can_resume(self.checkpoint_dir, self.random_state)
        objectives = self._objectives(tasks)
        rows = {name: read_rows(objectives[name], *task) for name, task in tasks.items()}
        random = check_random_state(self.random_state)
        rng = np.random.default_rng(random.randint(np.iinfo(np.int32).max, size=4))
        original = load_backbone(self.backbone, self.revision, "float32", self.device)
        original.check_pooled_layers(self.pooled_layers)
        max_length = int(self.max_length or original.max_length)
        tokenizer = original.tokenizer(max_length)
        fraction = self.validation_fraction if self.early_stopping else None
        data = {
            name: prepare(some, tokenizer, fraction, rng, self.pairs, self.prompt)
            for name, some in rows.items()
        }
        cut = np.concatenate([some.tokens.truncated for some in data.values()])
        report_truncated(int(cut.sum()), len(cut), max_length, self.on_truncate)

        recipe = Recipe(
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            patience=self.n_iter_no_change if self.early_stopping else None,
        )
        pooling = original.pooling if self.pooling == "auto" else self.pooling
        reading = Reading(pooling, int(self.pooled_layers))
        backbone, heads = trainable_copy(original, data)
        history: History = {}

        def keep() -> None:
            self.history_ = history
            self._read = reading, max_length, self.pairs, self.prompt
            self.heads_: dict[str, TaskHead] = {}
            for (name, some), head in zip(data.items(), heads, strict=True):
                weight, bias = some.objective.finish(
                    head.weight.detach().cpu().numpy(),
                    head.bias.detach().cpu().numpy(),
                    some.targets,
                )
                self.heads_[name] = TaskHead(objectives[name], some.targets.classes, weight, bias)
            self._files = {
                **pack_backbone(backbone),
                **pooling_files(pooling, backbone.n_features),
            }
            self._loaded: tuple[tuple[torch.device, torch.dtype], Backbone] | None = None
            self.n_features_out_ = original.n_features

        with kept_when_stopped(history, keep, self.checkpoint_dir):
            fine_tune(
                backbone,
                heads,
                data,
                recipe,
                reading=reading,
                temperature=float(self.temperature),
                head_learning_rate=float(self.head_learning_rate),
                mixed_precision=self._dtype_name() == "bfloat16",
                batch_tokens=resolve_batch_tokens(self.batch_tokens, original.device),
                rng=rng,
                history=history,
                progress=bool(self.verbose),
                checkpoint_dir=self.checkpoint_dir,
            )
        keep()
        return self

    def transform(self, X: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Turn texts into vectors.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2), or iterator
            Texts, or pairs of texts; with ``output="words"`` sentences as sequences of words.
        out : ndarray of shape (n_texts, n_features), default=None
            Where to write.

        Returns
        -------
        vectors : ndarray of shape (n_texts, n_features), or (n_words, n_features)
            In `output_dtype` and input order.

        Raises
        ------
        ValueError
            If X holds what is no text, or `out` does not fit.
        FloatingPointError
            If a vector is not finite, as can happen in float16.
        """
        vectors = self._vectors(X, self.output == "words", out, self.output_dtype)
        return self._in_container(vectors)

    def predict(self, X: Any, task: str | None = None) -> Any:
        """Predict what a source task asks for.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts; or what else the task's objective takes.
        task : str, default=None
            Which task's head to ask. None where there is one.

        Returns
        -------
        labels : ndarray of shape (n_texts,)
            As :meth:`PrefixEncoder.predict` gives them.

        Raises
        ------
        ValueError
            If there is no such task.
        """
        head, logits, counts = self._logits(X, task)
        return OBJECTIVES[head.objective].predict(logits, head.classes, counts)

    def predict_proba(self, X: Any, task: str | None = None) -> Any:
        """Give the probability of each class of a source task.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts; or what else the task's objective takes.
        task : str, default=None
            Which task's head to ask. None where there is one.

        Returns
        -------
        probabilities : ndarray of shape (n_texts, n_classes)
            As :meth:`PrefixEncoder.predict_proba` gives them.

        Raises
        ------
        ValueError
            If there is no such task, or it is a regression.
        """
        head, logits, counts = self._logits(X, task)
        return OBJECTIVES[head.objective].probabilities(logits, counts)

    def score(
        self,
        X: Any,
        y: Any,
        task: str | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Compare predictions of a source task with labels.

        Parameters
        ----------
        X : array-like of str of shape (n_texts,) or (n_texts, 2)
            Texts, or pairs of texts; or what else the task's objective takes.
        y : array-like of shape (n_texts,)
            Labels.
        task : str, default=None
            Which task's head to ask. None where there is one.
        sample_weight : array-like of shape (n_texts,), default=None
            Weights of texts.

        Returns
        -------
        score : float
            As :meth:`PrefixEncoder.score` gives it.

        Raises
        ------
        ValueError
            If there is no such task.
        """
        head, logits, counts = self._logits(X, task)
        objective = OBJECTIVES[head.objective]
        predicted = objective.predict(logits, head.classes, counts)
        return objective.score(y, predicted, sample_weight)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the fine-tuned backbone as a folder that :func:`load_backbone` takes.

        Parameters
        ----------
        folder : str or path-like
            Where to; it is made where there is none. Files of the same names are replaced, each
            whole or not at all; a backbone that was loaded from there is let go of. It has the
            pooling too, so that sentence-transformers loads it as it is.
        """
        check_is_fitted(self)
        write_backbone(self._files, folder)

    @property
    def backbone_(self) -> Backbone:
        """The fine-tuned backbone, frozen; loaded when it is first asked for."""
        check_is_fitted(self)
        where = resolve_device(self.device)
        key = (where, resolve_dtype(self.dtype, where))
        if self._loaded is None or self._loaded[0] != key:
            with tempfile.TemporaryDirectory() as folder:
                self.save(folder)
                backbone = read_backbone(folder, None, key[1], where)
            self._loaded = (key, replace(backbone, name="fine-tuned " + self.backbone))
        return self._loaded[1]

    def _vectors(
        self,
        X: Any,
        words: bool,
        out: NDArray[Any] | None = None,
        output_dtype: str = "float32",
    ) -> NDArray[Any]:
        backbone = self.backbone_
        return self._embed(
            X, self._representation(), [], backbone.n_features, lambda: backbone, words, out,
            output_dtype,
        )  # fmt: skip

    def _representation(self) -> Representation:
        # As the heads were trained, whatever the parameters say now.
        reading, max_length, pairs, prompt = self._read
        return Representation(
            fingerprint=self.backbone_.fingerprint,
            prefixes=(),
            combine="concat",
            pooling=reading.pooling,
            pooled_layers=reading.layers,
            max_length=max_length,
            dtype=self._dtype_name(),
            pairs=pairs,
            prompt=prompt,
            windows=self.on_truncate == "window",
        )

    def _logits(
        self, X: Any, task: str | None
    ) -> tuple[TaskHead, NDArray[np.float64], NDArray[np.intp]]:
        check_is_fitted(self)
        if task is None and len(self.heads_) == 1:
            (task,) = self.heads_
        if task not in self.heads_:
            raise ValueError(f"task must be one of {list(self.heads_)}, got {task!r}")
        head = self.heads_[task]
        row = OBJECTIVES[head.objective].row
        texts, counts = check_rows(X, row)
        vectors = self._vectors(texts, row == "words").astype(np.float64)
        if not len(texts):
            vectors = np.zeros((0, head.weight.shape[1]))
        if vectors.shape[1] != head.weight.shape[1]:
            learned = "pairs" if head.weight.shape[1] > self.n_features_out_ else "texts"
            raise ValueError(f"X must have {learned}, as task {task!r} was learned from")
        return head, vectors @ head.weight.T.astype(np.float64) + head.bias, counts

    def _objectives(self, tasks: Mapping[str, Any]) -> dict[str, str]:
        chosen = self.objectives or {}
        for name, objective in chosen.items():
            if name not in tasks or objective not in OBJECTIVES:
                raise ValueError(
                    f"objectives has {name!r}: {objective!r}; tasks are {list(tasks)}, objectives "
                    f"are {list(OBJECTIVES)}"
                )
        return {name: chosen.get(name, "classification") for name in tasks}

    def fit_transform(self, tasks: Any, y: Any = None, **params: Any) -> NDArray[Any]:
        """Refuse: tasks hold several X, and none of them is what is to be turned into vectors.

        Parameters
        ----------
        tasks : Ignored
            Not used.
        y : Ignored
            Not used.
        **params : Ignored
            Not used.

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            "MultiTaskEncoder learns from tasks, not from one X: call fit(tasks), and put the "
            "fitted encoder into a Pipeline as FrozenEstimator(encoder)"
        )

    def __getstate__(self) -> dict[str, Any]:
        # What was loaded is loaded again from the files, on whatever device there is.
        return {**super().__getstate__(), "_loaded": None}

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "heads_")
