"""
A target task with few labels
=============================

Source tasks help most when the target task has few labels. The target here is to predict which
subpackage of scipy a docstring comes from. The source tasks contain other docstrings of scipy, but
none of the target's test texts.
"""

# %%
# Two source tasks are learned independently: the package, and the kind of object.
from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, load_docstring_task

encoders = {}
for name in ["package", "kind"]:
    source = load_docstring_task(name, n_train_per_class=80)
    encoder = PrefixEncoder(demo_backbone(), max_steps=60, random_state=0)
    encoders[name] = encoder.fit(source.X_train, source.y_train)

banks = {
    "bare backbone": PrefixBank(encoders, active=[]),
    "bank, concatenated": PrefixBank(encoders),
    "bank, mean": PrefixBank(encoders, combine="mean"),
}

# %%
# The head of the target is trained on 1 to 16 texts per class, drawn four times. With the cache,
# each bank encodes each text only once.
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

target = load_docstring_task("subpackage")
sizes, seeds = [1, 2, 4, 8, 16], range(4)


def draw(n: int, seed: int) -> np.ndarray:
    """Return the positions of n random training texts per class."""
    rng = np.random.default_rng(seed)
    classes = np.unique(target.y_train)
    return np.concatenate(
        [rng.permutation(np.flatnonzero(target.y_train == c))[:n] for c in classes]
    )


scores = {}
for name, bank in banks.items():
    head = make_pipeline(bank, StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    scores[name] = np.array(
        [
            [
                head.fit(target.X_train[rows], target.y_train[rows]).score(
                    target.X_test, target.y_test
                )
                for rows in (draw(n, seed) for seed in seeds)
            ]
            for n in sizes
        ]
    )  # (size, seed)

# %%
# Lines are means over the four draws, and bands show their range.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
for name, accuracy in scores.items():
    axes.plot(sizes, accuracy.mean(axis=1), marker="o", label=name)
    axes.fill_between(sizes, accuracy.min(axis=1), accuracy.max(axis=1), alpha=0.15)
axes.set(xlabel="training texts per class", ylabel="test accuracy", xscale="log")
axes.set_xticks(sizes, sizes)
axes.minorticks_off()
axes.grid(alpha=0.3)
axes.legend(frameon=False)
plt.show()
