import inspect
import subprocess
import sys

import matplotlib as mpl

mpl.use("Agg")

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.utils import Bunch
from test_encoder import make, reviews

from prefixembed import PrefixBank
from prefixembed.inspection import (
    AttentionShareDisplay,
    EmbeddingMapDisplay,
    PrefixAblationDisplay,
    PrefixSimilarityDisplay,
    TrainingCurveDisplay,
    attention_share,
    displays,
    prefix_ablation,
)

TEXTS = [f"{word} {k}" for k in range(6) for word in ("joy", "bore")]
LABELS = [1, 0] * 6


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def bank(tiny, random_prefix):
    prefixes = {name: random_prefix(tiny(), seed=k) for k, name in enumerate("abc")}
    return PrefixBank(prefixes, dtype="float32", device="cpu", cache=None)


def ablation(n, seed=0):
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, 0.02, (n, 1))
    ends = np.hstack([mean, mean - 0.01, mean + 0.01])
    return Bunch(
        names=[f"source task {k}" for k in range(n)],
        gain=ends,
        contribution=ends,
        harmful=ends[:, 2] < 0,
    )


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def overlap(ax, labels):
    """Tell whether any two tick labels lie over each other."""
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    return any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


@pytest.mark.parametrize("n", [1, 2, 30])
def test_ablation_shows_every_prefix_best_on_top(n):
    result = ablation(n)
    ax = PrefixAblationDisplay.from_result(result).ax_
    names = [label.get_text() for label in ax.get_yticklabels()]
    order = np.argsort(result.contribution[:, 0])
    assert names == [result.names[k] for k in order]
    assert not overlap(ax, ax.get_yticklabels())
    harmful = [c for c in ax.collections if c.get_label() == "harmful"]
    assert (len(harmful[0].get_offsets()) if harmful else 0) == result.harmful.sum()


def test_ablation_from_an_estimator(bank):
    display = PrefixAblationDisplay.from_estimator(bank, TEXTS, LABELS, cv=2)
    expected = prefix_ablation(bank, TEXTS, LABELS, cv=2)
    np.testing.assert_allclose(display.gain, expected.gain)


@pytest.mark.parametrize(("n", "written"), [(2, True), (30, False)])
def test_shares_are_drawn_layer_by_prefix(n, written):
    shares = np.random.default_rng(0).random((6, 4, n)) / n
    names = [f"source task {k}" for k in range(n)]
    display = AttentionShareDisplay(names, shares).plot()
    (image,) = display.ax_.images
    np.testing.assert_allclose(image.get_array(), 100 * shares.mean(1))
    assert not overlap(display.ax_, display.ax_.get_xticklabels())
    assert len(texts_of(display.ax_)) == (6 * n if written else 0)
    ax = display.plot(prefix=names[1]).ax_
    np.testing.assert_allclose(ax.images[0].get_array(), 100 * shares[:, :, 1])
    with pytest.raises(ValueError, match="prefix must be one of .* got 'z'"):
        display.plot(prefix="z")


@pytest.mark.parametrize("n", [2, 30])
def test_similarity_is_drawn_with_names(n):
    similarity = np.eye(n)
    names = [f"source task {k}" for k in range(n)]
    ax = PrefixSimilarityDisplay(names, similarity, np.full(n, 0.25)).plot().ax_
    assert ax.get_yticklabels()[1].get_text() == "source task 1 (25 %)"
    assert not overlap(ax, ax.get_yticklabels()) and not overlap(ax, ax.get_xticklabels())


def test_from_estimators(bank):
    plt.figure()
    _, ax = plt.subplots()
    assert AttentionShareDisplay.from_estimator(bank, TEXTS, ax=ax).ax_ is ax
    assert PrefixSimilarityDisplay.from_estimator(bank, TEXTS).similarity.shape == (3, 3)
    computed = attention_share(bank, TEXTS)
    assert AttentionShareDisplay.from_result(computed).shares is computed.shares
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
def test_a_map_has_a_legend_where_there_are_classes(labels, legend):
    points = np.random.default_rng(0).standard_normal((60, 2))
    ax = EmbeddingMapDisplay(points, labels).plot().ax_
    assert sum(len(c.get_offsets()) for c in ax.collections) == 60
    found = ax.get_legend()
    assert (found and [text.get_text() for text in found.get_texts()]) == legend
    if legend:
        colors = {tuple(c.get_facecolor()[0]) for c in ax.collections}
        assert len(colors) == len(legend)


@pytest.mark.filterwarnings("ignore:the training loss is stuck")
def test_a_curve_marks_what_was_kept(tiny):
    encoder = make(tiny(), max_epochs=4).fit(*reviews(48))
    ax = TrainingCurveDisplay.from_estimator(encoder).ax_
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["training", "validation", "kept"]
    np.testing.assert_allclose(lines["training"].get_ydata(), encoder.history_["train_loss"])
    best = 1 + int(np.argmin(encoder.history_["valid_loss"]))
    assert lines["kept"].get_xdata()[0] == best
    several = {"epoch": [1, 2], "train_loss": [2, 1], "valid_loss": [3, 2]}
    several |= {"valid_loss[a]": [3, 1], "valid_loss[b]": [3, 3], "valid_accuracy[a]": [0, 1]}
    ax = TrainingCurveDisplay(several).plot().ax_
    assert [line.get_label() for line in ax.lines][1:4] == ["validation, mean", "a", "b"]
    alone = TrainingCurveDisplay({"epoch": [1], "train_loss": [2]}).plot().ax_
    assert len(alone.lines) == 1


def test_every_display_is_of_one_grammar():
    for name in displays.__all__:
        display = getattr(displays, name)
        assert "ax" in inspect.signature(display.plot).parameters
        assert "ax" in inspect.signature(display.from_estimator).parameters
        assert "ax" in inspect.signature(display.from_result).parameters


def test_without_matplotlib_the_extra_is_named():
    code = """if True:
        import sys
        sys.modules["matplotlib"] = None
        from prefixembed.inspection import TrainingCurveDisplay
        try:
            TrainingCurveDisplay({"epoch": [1], "train_loss": [2]}).plot()
        except ImportError as error:
            assert "TrainingCurveDisplay.plot needs matplotlib" in str(error)
            assert "prefixembed[plot]" in str(error)
            sys.exit(7)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


def test_names_that_matplotlib_reads_otherwise():
    points = np.zeros((4, 2))
    labels = np.array(["_hidden", r"$\frac$", None, "plain"], dtype=object)
    display = EmbeddingMapDisplay(points, list(labels)).plot()
    display.figure_.canvas.draw()
    assert len(display.ax_.get_legend().get_texts()) == 4
    result = ablation(2) | {"names": [r"$\frac$", "_b"]}
    PrefixAblationDisplay.from_result(result).figure_.canvas.draw()
    history = {"epoch": [1], "train_loss": [1], "valid_loss": [1], "valid_loss[_a]": [1]}
    ax = TrainingCurveDisplay(history).plot().ax_
    assert "_a" in [text.get_text() for text in ax.get_legend().get_texts()]
