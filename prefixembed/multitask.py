"""The baseline of the paper: one backbone, fine-tuned on all source tasks, then frozen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.texts import is_pairs
from prefixembed._fit.convergence import warn_after_training
from prefixembed._fit.examples import check_tasks, read_rows
from prefixembed._fit.fine_tuning import FineTuner, pack_backbone, write_backbone
from prefixembed._fit.learning import check_can_resume
from prefixembed._fit.objectives import OBJECTIVES
from prefixembed._fit.optimization import MAX_RATE
from prefixembed._fit.predictions import TaskHeadsMixin
from prefixembed._fit.temporary_backbone import TemporaryBackbone
from prefixembed._fit.transformer import LearningTransformer
from prefixembed._model.devices import resolve_device, resolve_dtype
from prefixembed._utils.docstrings import substitute
from prefixembed._utils.parameters import Number
from prefixembed.backbone import Backbone, load_backbone
from prefixembed.bank import PrefixBank
from prefixembed.cache import VectorCache
from prefixembed.head import Head

if TYPE_CHECKING:
    from typing_extensions import Self

TaskHead = Head  # the name that it had before prefixes shared it


@substitute
class MultiTaskEncoder(TaskHeadsMixin, LearningTransformer):
    """Fine-tune a copy of a whole backbone on several source tasks together, then freeze it.

    Prefixes are an alternative to this way to general representations [1]_. Each step is one
    batch of one task, with a linear head per task, and gradients reach every weight. A
    source task cannot be removed afterwards, and adding one means training again. With one task
    it is plain fine-tuning.

    Read more in the :doc:`user guide </guide/multitask>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    backbone : str or path-like, default="roberta-large"
        Hub name or folder of an encoder of a supported family. Its own weights do not change.
    $revision
    objectives : dict of str to str, default=None
        Objective of each task by name, as for :class:`PrefixEncoder`. Tasks without one are
        classifications.
    temperature : float, default=1.0
        How tasks are mixed: the share of steps of a task is proportional to its number of batches
        to the power ``1 / temperature``. 1 mixes in proportion to size; infinity gives each task
        the same number of steps.
    $pooling
    $pooled_layers
    $pairs
    $prompt
    $max_length
    learning_rate : float, default=5e-5
        Peak learning rate of AdamW for the backbone, after a warm-up over a tenth of the steps
        and before linear decay to zero. Gradients are clipped at norm 1.
    head_learning_rate : float, default=1e-3
        Peak learning rate for the heads, which start at zero.
    weight_decay : float, default=0.01
        Weight decay of AdamW.
    $batch_size
    $max_steps
    $early_stopping
    $validation_fraction
    $n_iter_no_change
    checkpoint_dir : str or path-like, default=None
        Folder for the state of training, as for :class:`PrefixEncoder`. Two files are kept, each
        four times as large as the backbone. None for no checkpoints.
    $batch_tokens
    $batch_invariant
    $on_truncate
    random_state : int, RandomState instance or None, default=None
        Seed of the order of texts, the validation split and dropout. For dropout, the random
        states of torch on the device and on the CPU are set during fit, and restored afterwards.
    $device
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        Dtype that the backbone computes in. During fit, weights stay in float32, and products are
        computed in bfloat16 if this parameter says so.
    $output
    $output_dtype
    $cache
    $verbose

    Attributes
    ----------
    backbone_ : Backbone
        The fine-tuned backbone, frozen.
    heads_ : dict of str to Head
        The head of each source task.
    of_pairs_ : dict of str to bool
        Whether each source task has pairs of texts.
    history_ : dict of str to list of float
        One entry per evaluation: ``step`` (number of steps so far), ``train_loss`` (weighted mean
        since the entry before), ``learning_rate``, ``seconds`` and, with early stopping,
        ``valid_loss``, the mean over tasks. With several tasks, each has its own
        ``valid_loss[name]`` and ``valid_accuracy[name]``, or ``valid_r2[name]`` of two texts or
        more; with one task, the name is left out.
    n_features_out_ : int
        Length of the vector of a text.

    See Also
    --------
    PrefixEncoder : Learns one task and leaves the backbone alone.
    PrefixBank : Combines what was learned from several tasks.

    Notes
    -----
    A pickle holds the whole backbone. :meth:`save` writes it as a folder that
    :func:`load_backbone` and other libraries take, so that prefixes can be learned on top of it.

    References
    ----------
    $paper
    $sentence_bert

    Examples
    --------
    >>> from prefixembed import MultiTaskEncoder
    >>> from prefixembed.tasks import demo_backbone
    >>> texts = ["what a film", "dull and long", "a joy", "a bore"] * 8
    >>> tasks = {"stars": (texts, [1, 0, 1, 0] * 8), "long": (texts, [0, 1, 0, 0] * 8)}
    >>> encoder = MultiTaskEncoder(demo_backbone(), max_steps=4, random_state=0).fit(tasks)
    >>> encoder.transform(["a fine film"]).shape
    (1, 384)
    >>> encoder.predict(["what a joy"], "stars")
    array([1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **LearningTransformer._parameter_constraints,
        "objectives": [dict, None],
        "temperature": [Number(1, None, closed="both")],
        "head_learning_rate": [Interval(Real, 0, MAX_RATE, closed="right")],
    }

    # `tasks` is what fit learns from, and not metadata to route.
    __metadata_request__fit: ClassVar[dict[str, str]] = {"tasks": UNUSED}

    # The folder that the fine-tuned backbone is loaded from; written when it is first needed.
    _place: TemporaryBackbone | None = None

    def __init__(
        self,
        backbone: str | os.PathLike[str] = "roberta-large",
        *,
        revision: str | None = None,
        objectives: dict[str, str] | None = None,
        temperature: float = 1.0,
        pooling: str = "auto",
        pooled_layers: int = 1,
        pairs: str = "auto",
        prompt: str | None = None,
        max_length: int | None = None,
        learning_rate: float = 5e-5,
        head_learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 32,
        max_steps: int | str = "auto",
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
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
        self.max_steps = max_steps
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
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
    def fit(self, tasks: Mapping[str, tuple[Any, ...]], y: Any = None) -> Self:
        """Learn all source tasks together.

        Parameters
        ----------
        tasks : mapping of str to tuple
            ``(X, y)`` or ``(X, y, sample_weight)`` of each source task by name, as for
            :meth:`PrefixEncoder.fit`.
        y : Ignored
            Labels are in `tasks`.

        Returns
        -------
        self : MultiTaskEncoder
            Fitted encoder.

        Raises
        ------
        ValueError
            If a task is not such a tuple, an objective is unknown, rows or labels do not fit it,
            or texts cannot be read as the parameters say.
        FloatingPointError
            If the loss or its gradient becomes infinite or NaN.
        OSError
            If a checkpoint cannot be written.

        Warns
        -----
        ConvergenceWarning
            If the validation loss of a task is never below that at chance, or if the mean over
            tasks is still falling at the end. With one task, also if the training loss is never
            below that at chance.
        UserWarning
            If classes are too small to be validated, or an error or Ctrl-C stops training. The
            error is re-raised. If there was an evaluation with validation, the encoder holds the
            best state so far; otherwise, after Ctrl-C, the last one.
        """
        if not check_tasks(tasks):
            raise ValueError("tasks must have one source task or more, got none")
        check_can_resume(self.checkpoint_dir, self.random_state)
        objectives = self._objectives(tasks)
        rows = {name: read_rows(objectives[name], *task) for name, task in tasks.items()}
        rng = self._make_rng()
        original = load_backbone(self.backbone, self.revision, "float32", self.device)
        data, reading = self._prepare(rows, original, rng)
        dtype = resolve_dtype(self.dtype, resolve_device(self.device))
        tuner = FineTuner(
            original,
            data,
            reading,
            learning_rate=float(self.learning_rate),
            head_learning_rate=float(self.head_learning_rate),
            mixed_precision=dtype is torch.bfloat16,
            rng=rng,
        )
        temperature = float(self.temperature)
        recipe = self._recipe(data, self.learning_rate, temperature)
        outcome = self._train(data, tuner, recipe, original, rng, temperature)
        if outcome.is_usable:
            # First what can fail, so that heads and backbone always belong together.
            files = pack_backbone(tuner.backbone, reading)
            self.history_ = outcome.history
            self.heads_ = tuner.heads_learned()
            self.of_pairs_ = {name: is_pairs(some.texts) for name, some in rows.items()}
            self.n_features_out_ = original.n_features
            self._files, self._place = files, None
        outcome.reraise(self.checkpoint_dir)
        warn_after_training(outcome.history, data, recipe)
        return self

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the fine-tuned backbone as a folder that :func:`load_backbone` takes.

        The folder records how texts are read, also in the form that sentence-transformers reads.

        Parameters
        ----------
        folder : str or path-like
            Created if it does not exist. Files of the same names are replaced, each whole or not
            at all. A backbone that was loaded from the folder is released.
        """
        check_is_fitted(self)
        write_backbone(self._files, folder)

    @property
    def backbone_(self) -> Backbone:
        """The fine-tuned backbone, frozen; loaded when it is first needed."""
        return self.as_bank().load_backbone()

    def as_bank(self) -> PrefixBank:
        """Return an empty bank on the fine-tuned backbone, whose vectors `transform` returns.

        Returns
        -------
        bank : PrefixBank
            Its backbone lies in a temporary folder, which exists as long as the encoder or the
            bank does. Use :meth:`save` for a folder that stays.
        """
        check_is_fitted(self)
        if self._place is None:
            self._place = TemporaryBackbone(self._files)
        return PrefixBank({}, backbone=self._place, **self._running_params())

    def _objectives(self, tasks: Mapping[str, Any]) -> dict[str, str]:
        chosen = self.objectives or {}
        for name, objective in chosen.items():
            if name not in tasks or not isinstance(objective, str) or objective not in OBJECTIVES:
                raise ValueError(
                    f"objectives has {name!r}: {objective!r}; tasks are {list(tasks)}, objectives "
                    f"are {list(OBJECTIVES)}"
                )
        return {name: chosen.get(name, "classification") for name in tasks}

    def fit_transform(self, tasks: Any, y: Any = None, **params: Any) -> NDArray[Any]:
        """Raise TypeError: `tasks` has no single X to transform.

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
        # A copy writes a folder of its own when it needs one.
        return {**super().__getstate__(), "_place": None}

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "heads_")
