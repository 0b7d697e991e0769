"""Parameters that several public classes and functions share, described once."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import TypeVar

T = TypeVar("T")

# Parameters of estimators that have many, by what they are about: a list each on their pages.
PARAMETER_GROUPS = {
    "model": (
        "prefixes", "active", "combine", "weights", "backbone", "revision", "objective",
        "objectives", "prefix_length", "ffn_length", "init", "reparameterize",
    ),
    "reading": (
        "pooling", "pooled_layers", "pairs", "prompt", "max_length", "on_truncate", "output",
    ),
    "training": (
        "dropout", "background", "background_weight", "temperature", "learning_rate",
        "head_learning_rate", "weight_decay", "batch_size", "max_steps", "early_stopping",
        "validation_fraction", "n_iter_no_change", "class_weight", "checkpoint_dir", "random_state",
    ),
    "running": (
        "batch_tokens", "batch_invariant", "device", "dtype", "output_dtype", "cache", "verbose",
    ),
}  # fmt: skip

_PLACEHOLDER = re.compile(r"^( *)\$(\w+)$", re.MULTILINE)

SHARED = {
    "revision": """
revision : str, default=None
    Revision of the backbone on the Hub. None for the newest one.
""",
    "pooling": """
pooling : {"auto", "mean", "cls", "max", "last"}, default="auto"
    How token vectors become one vector per text:

    - ``"auto"``: as the backbone was trained. That is the pooling that ``modules.json`` of
      sentence-transformers names, or else ``"last"`` for decoders and ``"mean"`` for others;
    - ``"mean"`` or ``"max"``: the mean or the maximum over all tokens;
    - ``"cls"`` or ``"last"``: the vector of the first or the last token.
""",
    "pooled_layers": """
pooled_layers : int, default=1
    Number of last layers whose token vectors are averaged before pooling.
""",
    "pairs": """
pairs : {"auto", "joint", "apart"}, default="auto"
    How pairs of texts are read:

    $joint_or_apart
    - ``"auto"``: ``"apart"`` if the backbone was trained to embed sentences, as its
      ``modules.json`` says, and ``"joint"`` otherwise.
""",
    "joint_or_apart": """
- ``"joint"``: as one sequence of both texts, as in the paper;
- ``"apart"``: each text by itself. The vector of a pair is ``[u, v, |u - v|]`` [2]_, three times
  as wide as the vector of a text;
""",
    "prompt": """
prompt : str, default=None
    Text that is put before each text, such as the instruction that a backbone was trained with.
    It comes before the first text of a joint pair, and before both texts of a pair that is read
    apart. It counts towards `max_length` and cannot be combined with words. None for the
    default prompt of the backbone, if ``config_sentence_transformers.json`` names one.
""",
    "max_length": """
max_length : int, default=None
    Longest text in tokens, special tokens included; prefixes do not count. None for the limit
    in the backbone's ``sentence_bert_config.json``, or as much as the backbone can take.
""",
    "batch_size": """
batch_size : int, default=32
    Number of texts per step.
""",
    "checkpoint_dir": """
checkpoint_dir : str or path-like, default=None
    Folder for the state of training, which is written about once per minute and at the
    end. If the process dies, the same call with the same data, parameters and
    `random_state` continues from there, and learns the same prefix bit for bit on the same
    device. Many runs may share a folder. It is not needed after training. None for no
    checkpoints.
""",
    "dropout": """
dropout : float, default=0.0
    Share of the prefix's keys and values, and of the activations of its slots, that each
    training step sets to zero at random; at least 0 and less than 1.
""",
    "background": """
background : "auto", array-like of str or None, default="auto"
    Texts that have nothing to do with the source task. Training penalizes what slots do to
    them, so that the prefix leaves the texts of other tasks alone in a bank:

    - ``"auto"``: 2,400 sentences about everything, which come with the library;
    - an array of texts that belong to other tasks, without labels;
    - None: no penalty.
""",
    "background_weight": """
background_weight : float, default=10
    Factor on the penalty: the mean over layers of the squared size of what slots add to
    background texts, relative to the input of the layer.
""",
    "class_weight": """
class_weight : dict or "balanced", default=None
    Weights of classes in the loss, for classification only; see
    :func:`sklearn.utils.class_weight.compute_class_weight`.
""",
    "prefix_learning_rate": """
learning_rate : float or "auto", default="auto"
    Peak learning rate of AdamW, after a warm-up over a tenth of the steps and before linear
    decay to zero. Gradients are clipped at norm 1. ``"auto"`` is 0.01 for keys, values and
    head, and 0.002 for slots.
""",
    "max_steps": """
max_steps : int or "auto", default="auto"
    Number of steps of training, which early stopping may end before. ``"auto"`` for three passes
    over all training texts, but at least 200 and at most 3000 steps.
""",
    "early_stopping": """
early_stopping : bool, default=True
    Whether to set `validation_fraction` of the training texts aside, to stop when their loss has
    not improved for `n_iter_no_change` evaluations, and to keep the state with the lowest loss.
    The loss is that at the best scale of the logits: how sure a head is of itself says nothing
    about vectors. There are up to 20 evaluations, at regular intervals. At the end, the head is
    rescaled, or fitted again on the final vectors, if that lowers the loss on 20 or more of these
    texts.
""",
    "validation_fraction": """
validation_fraction : float, default=0.1
    Share of each class that is set aside for validation, rounded up. A class with fewer than
    five texts stays in the training set.
""",
    "n_iter_no_change": """
n_iter_no_change : int, default=5
    Number of evaluations without improvement after which training stops.
""",
    "batch_tokens": """
batch_tokens : int or "auto", default="auto"
    Maximum number of tokens per batch, padding included. ``"auto"`` depends on the device. It
    changes speed and memory only, up to rounding in `dtype`.
""",
    "batch_invariant": """
batch_invariant : bool, default=False
    Whether the bits of a vector depend on its text alone, and not on the other texts of a call.
    This is tested on CPUs with one thread. A text is padded to a length that follows from its own,
    and all batches of that length have the same number of rows, so that each text meets the same
    shapes and kernels. Batches are filled up, which costs time,
    most of all for a single text. Equal bits need equal `batch_tokens`, `dtype`, device and number
    of threads, and equal versions of torch. ``"auto"`` stands for fewer `batch_tokens` than
    without it. If the device runs out of memory, a MemoryError is raised, since smaller batches
    would have other bits. It acts on vectors, not on training.
""",
    "on_truncate": """
on_truncate : {"warn", "raise", "ignore", "window"}, default="warn"
    What to do with texts longer than `max_length`:

    - ``"warn"``: cut them and warn once per call;
    - ``"raise"``: raise a ValueError;
    - ``"ignore"``: cut them silently;
    - ``"window"``: read them in windows of `max_length` tokens that overlap by a quarter, and
      pool the vectors of the windows. It needs ``output="texts"``, and ``pairs="apart"`` for
      pairs. Training still cuts, with a warning.
""",
    "device": """
device : str, default="auto"
    Device to compute on. ``"auto"`` picks CUDA, then MPS, then the CPU.
""",
    "dtype": """
dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
    Dtype that the backbone computes in. ``"auto"`` picks bfloat16 where the hardware multiplies
    in it, and float32 elsewhere.
""",
    "output": """
output : {"texts", "words"}, default="texts"
    What :meth:`transform` returns a vector for:

    - ``"texts"``: each text, or each pair of texts;
    - ``"words"``: each word of sentences that are given as sequences of words. The vector of a
      word is the mean over its tokens, and zero for a word without tokens.
""",
    "output_dtype": """
output_dtype : {"float32", "float16", "int8", "binary"}, default="float32"
    Dtype of the vectors that :meth:`transform` returns. ``"int8"`` scales each vector by
    itself: 127 stands for four times its root mean square. ``"binary"`` packs the signs of
    eight features into a byte; :func:`numpy.unpackbits` unpacks them.
""",
    "cache": """
cache : "memory", path, VectorCache or None, default="memory"
    Where vectors are kept by content, so that no text is encoded twice:

    - ``"memory"``: one :class:`VectorCache` that the whole process shares;
    - the path of a file: kept for later processes and shared with workers;
    - None: nothing is kept.
""",
    "verbose": """
verbose : bool or int, default=False
    Whether to show progress bars.
""",
    "random_state": """
random_state : int, RandomState instance or None, default=None
    Seed of the validation split, the order of texts, and the initial values. Pass an int for
    reproducible results.
""",
    "paper": """
.. [1] Huang, K.-H., et al., "Learning Easily Updated General Purpose Text Representations with
   Adaptable Task-Specific Prefixes", arXiv 2305.13499, 2023.
""",
    "sentence_bert": """
.. [2] Reimers, N., and Gurevych, I., "Sentence-BERT", arXiv 1908.10084, 2019.
""",
    "ax": """
ax : matplotlib Axes, default=None
    Axes to draw on. None for axes in a new figure.
""",
    "ax_": """
ax_ : matplotlib Axes
    Axes that were drawn on.
""",
    "figure_": """
figure_ : matplotlib Figure
    Figure that contains `ax_`.
""",
    "rows": """
X : array-like of str of shape (n_texts,) or (n_texts, 2)
    Texts, or pairs of texts, or whatever else the objective of the task takes.
""",
    "task": """
task : str, default=None
    Name of the source task. None if there is only one.
""",
    "errors_of_classes": """
ValueError
    If there is no such task, it is a regression, or it was learned on the other kind of texts.
""",
    "sample_weight": """
sample_weight : array-like of shape (n_texts,), default=None
    Weights of texts. None for equal weights.
""",
    "X": """
X : array-like of str of shape (n_texts,) or (n_texts, 2)
    Texts, or pairs of texts.
""",
    # Of displays and inspection.
    "inspected_bank": """
bank : PrefixBank
    Bank whose active prefixes are inspected.
""",
    "names": """
names : list of str
    Names of the prefixes.
""",
    "target_labels": """
y : array-like of shape (n_texts,)
    Labels of the target task.
""",
    "target_head": """
head : estimator, default=None
    Estimator that is trained on the vectors. None for ``LogisticRegression(max_iter=1000)``.
""",
    "shown_prefix": """
prefix : str, default=None
    Name of the prefix to show head by head. None to show all prefixes, with their mean over heads.
""",
    "display": """
display : Display
    Object that holds the values and the plot.
""",
    # Of target tasks and multiple choice.
    "target_tasks": """
targets : mapping of str to tuple
    Data of target tasks by name, as ``(X, y)`` or ``(X, y, sample_weight)``.
""",
    "target_name": """
name : str
    Name of the target task.
""",
    "target_names": """
targets : iterable of str, default=None
    Names of the target tasks to predict. None for all, in the order of ``heads_``.
""",
    "y_ignored": """
y : Ignored
    Not used, present for API consistency. Labels are in `targets`.
""",
    "self": """
self : estimator
    The estimator itself.
""",
    "choices": """
X : sequence of (str, sequence of str)
    Rows of a context and its choices. The number of choices may differ between rows.
""",
    "correct": """
y : array-like of shape (n_rows,)
    Position of the correct choice in each row.
""",
    # Of prefixes from other libraries.
    "backbone_name": """
backbone : str or path-like
    Hub name or folder of the backbone.
""",
    "tokens_beside_prefix": """
max_length : int, default=None
    Longest text in tokens, special tokens included. None for as much as the backbone can take
    in addition to the positions that the prefix takes, if any.
""",
    "loaded_prefix": """
prefix : Prefix
    Prefix without a head.
""",
}


def substitute(described: T) -> T:
    """Replace lines such as ``$device`` in a docstring by the shared description of a parameter.

    Parameters
    ----------
    described : class or function
        Object whose docstring has placeholders, each alone on its line. The methods of a class
        are included.

    Returns
    -------
    described : class or function
        The same object.

    Raises
    ------
    KeyError
        If a placeholder has no shared description.
    """
    methods = vars(described).values() if inspect.isclass(described) else ()
    for one in (described, *methods):
        one = getattr(one, "__func__", getattr(one, "fn", one))  # of class methods, available_if
        if isinstance(one, property) or not callable(one) or not one.__doc__:
            continue  # there are no docstrings under python -OO
        if _PLACEHOLDER.search(one.__doc__):
            one.__doc__ = _fill(inspect.cleandoc(one.__doc__))
    return described


def _fill(text: str) -> str:
    return _PLACEHOLDER.sub(
        lambda match: textwrap.indent(_fill(SHARED[match[2]].strip()), match[1]), text
    )
