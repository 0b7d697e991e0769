"""Displays of prefixembed.inspection."""

import inspect
import itertools
import pickle

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import run_python
from sklearn.utils import Bunch

from prefixembed import PrefixBank, PrefixEncoder, inspection
from prefixembed.inspection import (
    AttentionShareDisplay,
    EmbeddingMapDisplay,
    PrefixAblationDisplay,
    PrefixSimilarityDisplay,
    SlotShareDisplay,
    TrainingCurveDisplay,
    attention_share,
    prefix_ablation,
    slot_share,
)

TEXTS = [f"{word} {k}" for k in range(6) for word in ("joy", "bore")]
LABELS = [1, 0] * 6
DISPLAYS = [
    PrefixAblationDisplay(["a"], np.zeros((1, 3)), np.zeros((1, 3)), np.array([False])),
    AttentionShareDisplay(["a"], np.full((2, 3, 1), 0.5)),
    SlotShareDisplay(["a"], np.full((2, 1), 0.5)),
    PrefixSimilarityDisplay(["a"], np.ones((1, 1)), np.ones(1)),
    EmbeddingMapDisplay(np.zeros((2, 2)), np.array(["a", "b"])),
    TrainingCurveDisplay({"step": [1], "train_loss": [2]}),
]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def bank(tiny, random_prefix):
    prefixes = {name: random_prefix(tiny(), seed=k, ffn_length=2) for k, name in enumerate("abc")}
    return PrefixBank(prefixes, dtype="float32", device="cpu", cache=None)


def ablation(n, seed=0):
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, 0.02, (n, 1))
    interval = np.hstack([mean, mean - 0.01, mean + 0.01])
    return Bunch(
        names=[f"source task {k}" for k in range(n)],
        gain=interval,
        contribution=interval,
        harmful=interval[:, 2] < 0,
    )


def texts_in(ax):
    return [text.get_text() for text in ax.texts]


def overlap(ax, labels):
    """Return whether any tick label overlaps the next one."""
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    return any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("n", [1, 2, 30])
def test_ablation_shows_every_prefix_with_the_best_on_top(n):
    result = ablation(n)
    ax = PrefixAblationDisplay.from_result(result).ax_
    names = [label.get_text() for label in ax.get_yticklabels()]
    order = np.argsort(result.contribution[:, 0])
    assert names == [result.names[k] for k in order]
    assert not overlap(ax, ax.get_yticklabels())
    harmful = [c for c in ax.collections if c.get_label() == "harmful"]
    assert (len(harmful[0].get_offsets()) if harmful else 0) == result.harmful.sum()


def test_ablation_of_a_bank(bank):
    display = PrefixAblationDisplay.from_estimator(bank, TEXTS, LABELS, cv=2)
    expected = prefix_ablation(bank, TEXTS, LABELS, cv=2)
    np.testing.assert_allclose(display.gain, expected.gain)


@pytest.mark.parametrize(("n", "written"), [(2, True), (30, False)])
@pytest.mark.parametrize("kind", [AttentionShareDisplay, SlotShareDisplay])
def test_shares_by_layer_and_prefix(n, written, kind):
    shares = np.random.default_rng(0).random((6, 4, n)) / n  # (layer, head, prefix)
    by_prefix = shares.mean(1)
    names = [f"source task {k}" for k in range(n)]
    display = kind(names, shares if kind is AttentionShareDisplay else by_prefix).plot()
    (image,) = display.ax_.images
    np.testing.assert_allclose(image.get_array(), 100 * by_prefix)
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == names
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("prefix", "layer")
    assert not overlap(display.ax_, display.ax_.get_xticklabels())
    assert len(texts_in(display.ax_)) == (6 * n if written else 0)


def test_attention_share_of_one_prefix_by_layer_and_head():
    shares = np.random.default_rng(0).random((6, 4, 2)) / 2
    display = AttentionShareDisplay(["a", "b"], shares).plot(prefix="b")
    np.testing.assert_allclose(display.ax_.images[0].get_array(), 100 * shares[:, :, 1])
    assert display.ax_.get_xlabel() == "head" and display.ax_.get_title() == "prefix b"
    with pytest.raises(ValueError, match="prefix must be one of .* got 'z'"):
        display.plot(prefix="z")


@pytest.mark.parametrize("n", [2, 30])
def test_similarity_is_labelled_with_names_and_effects(n):
    names = [f"source task {k}" for k in range(n)]
    ax = PrefixSimilarityDisplay(names, np.eye(n), np.full(n, 0.25)).plot().ax_
    assert ax.get_yticklabels()[1].get_text() == "source task 1 (25%)"
    assert not overlap(ax, ax.get_yticklabels()) and not overlap(ax, ax.get_xticklabels())


def test_displays_of_a_bank(bank):
    plt.figure()
    _, ax = plt.subplots()
    assert AttentionShareDisplay.from_estimator(bank, TEXTS, ax=ax).ax_ is ax
    assert PrefixSimilarityDisplay.from_estimator(bank, TEXTS).similarity.shape == (3, 3)
    for display, function in (
        (AttentionShareDisplay, attention_share), (SlotShareDisplay, slot_share)
    ):  # fmt: skip
        computed = function(bank, TEXTS)
        assert display.from_result(computed).shares is computed.shares
        np.testing.assert_array_equal(display.from_estimator(bank, TEXTS).shares, computed.shares)
    assert EmbeddingMapDisplay.from_estimator(bank, TEXTS, LABELS).points.shape == (12, 2)


@pytest.mark.parametrize(
    ("labels", "legend"),
    [
        (None, None),
        (np.array(["a", "b", "c"] * 20), ["a", "b", "c"]),
        (np.arange(60) % 12, [str(k) for k in range(12)]),
        (np.linspace(0, 1, 60), None),
        (np.array([f"label {k}" for k in range(60)]), None),
    ],
)
def test_map_has_a_legend_if_labels_are_few_classes(labels, legend):
    points = np.random.default_rng(0).standard_normal((60, 2))
    ax = EmbeddingMapDisplay(points, labels).plot().ax_
    assert sum(len(c.get_offsets()) for c in ax.collections) == 60
    found = ax.get_legend()
    assert (found and [text.get_text() for text in found.get_texts()]) == legend
    if legend:
        colors = {tuple(c.get_facecolor()[0]) for c in ax.collections}
        assert len(colors) == len(legend)


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_training_curve_marks_the_step_that_was_kept(tiny):
    encoder = PrefixEncoder(
        tiny(), max_steps=48, batch_size=8, learning_rate=0.03, max_length=64, random_state=0,
        dtype="float32", device="cpu",
    ).fit(4 * TEXTS, 4 * LABELS)  # fmt: skip
    ax = TrainingCurveDisplay.from_estimator(encoder).ax_
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["training", "validation", "kept"]
    np.testing.assert_allclose(lines["training"].get_ydata(), encoder.history_["train_loss"])
    best = int(np.argmin(encoder.history_["valid_loss"]))
    assert lines["kept"].get_xdata()[0] == encoder.history_["step"][best]
    np.testing.assert_array_equal(lines["validation"].get_xdata(), encoder.history_["step"])


def test_training_curve_shows_each_task():
    history = {"step": [1, 2], "train_loss": [2, 1], "valid_loss": [3, 2]}
    history |= {"valid_loss[a]": [3, 1], "valid_loss[b]": [3, 3], "valid_accuracy[a]": [0, 1]}
    ax = TrainingCurveDisplay(history).plot().ax_
    assert [line.get_label() for line in ax.lines][1:4] == ["validation, mean", "a", "b"]


def test_training_curve_without_validation_marks_no_step():
    ax = TrainingCurveDisplay({"step": [1], "train_loss": [2]}).plot().ax_
    assert len(ax.lines) == 1


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda display: type(display).__name__)
def test_display_follows_the_common_interface(display):
    for method in (display.plot, display.from_estimator, display.from_result):
        assert "ax" in inspect.signature(method).parameters
    _, ax = plt.subplots()
    assert display.plot(ax) is display
    assert display.ax_ is ax and display.figure_ is ax.figure


def test_every_display_is_tested():
    public = {name for name in inspection.__all__ if name.endswith("Display")}
    assert {type(display).__name__ for display in DISPLAYS} == public


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda display: type(display).__name__)
def test_pickles_name_a_public_path(display):
    module = type(display).__module__
    assert module.startswith("prefixembed.inspection.") and "._" not in module
    loaded = pickle.loads(pickle.dumps(display))
    assert type(loaded) is getattr(inspection, type(display).__name__)
    assert loaded.plot().ax_


def test_missing_matplotlib_names_the_extra():
    code = """if True:
        import sys
        sys.modules["matplotlib"] = None
        from prefixembed.inspection import TrainingCurveDisplay
        try:
            TrainingCurveDisplay({"step": [1], "train_loss": [2]}).plot()
        except ImportError as error:
            assert "TrainingCurveDisplay.plot requires matplotlib" in str(error)
            assert "prefixembed[plot]" in str(error)
            print("refused")
    """
    assert run_python(code)[0] == "refused\n"


def test_names_with_a_special_meaning_to_matplotlib_are_shown_as_they_are():
    labels = [r"_hidden", r"$\frac$", None, "plain"]
    display = EmbeddingMapDisplay(np.zeros((4, 2)), labels).plot()
    display.figure_.canvas.draw()
    assert len(display.ax_.get_legend().get_texts()) == 4
    result = ablation(2) | {"names": [r"$\frac$", "_b"]}
    PrefixAblationDisplay.from_result(result).figure_.canvas.draw()
    history = {"step": [1], "train_loss": [1], "valid_loss": [1], "valid_loss[_a]": [1]}
    ax = TrainingCurveDisplay(history).plot().ax_
    assert "_a" in [text.get_text() for text in ax.get_legend().get_texts()]
