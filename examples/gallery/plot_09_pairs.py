"""
Two ways to read a pair
=======================

The backbone can read a pair of texts as one sequence, as in the paper, or read each text by itself.
Which is better depends on the backbone's training. The default, ``pairs="auto"``, follows it.
"""

# %%
# The task: does a summary describe a name? The demo backbone was trained on single sentences, and
# has not seen two in one sequence.
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, load_docstring_task

task = load_docstring_task("name", n_train_per_class=120)
X_test, y_test = task.X_test[:400], task.y_test[:400]
print(task.X_train[:2], task.y_train[:2])

# %%
# We train the same head on the vectors of the bare backbone and on those with a prefix.
scores = {}
for pairs in ["joint", "apart"]:
    encoder = PrefixEncoder(demo_backbone(), pairs=pairs, max_steps=60, random_state=0)
    encoder.fit(task.X_train, task.y_train)
    scores[pairs] = []
    for active in ([], ["name"]):
        representation = PrefixBank({"name": encoder}, pairs=pairs, active=active)
        head = make_pipeline(
            representation, StandardScaler(), LogisticRegression(C=0.001, max_iter=1000)
        )
        scores[pairs].append(head.fit(task.X_train, task.y_train).score(X_test, y_test))

# %%
# Error bars are two standard errors of an accuracy on 400 test texts. The dashed line is chance.
import matplotlib.pyplot as plt
import numpy as np

figure, axes = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
places = np.arange(2)
for k, (pairs, accuracies) in enumerate(scores.items()):
    errors = [2 * (p * (1 - p) / len(y_test)) ** 0.5 for p in accuracies]
    bars = axes.bar(
        places + 0.36 * (k - 0.5), accuracies, width=0.34, yerr=errors, label=f'pairs="{pairs}"'
    )
    axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
axes.axhline(0.5, color="0.5", linestyle="--", linewidth=1)
axes.set_xticks(places, ["bare backbone", "with the prefix"])
axes.set(ylabel="test accuracy", ylim=(0, 1))
axes.legend(frameon=False, loc="upper left")
plt.show()
