"""
A target task with few labels
=============================

Source tasks help most when the target task has few labels and is related to one of them. Here, the
source tasks are those of the demo bank, among them the sentiment of film reviews. The target task
is the sentiment of sentences about other topics.
"""

# %%
# The data: forty sentences, half of them positive. They stand in ``sentences.py`` and are pairs
# with the same topic and opposite sentiment, so that topics say nothing about the label. The
# example shows what happens, not how large a gain usually is: see the evidence for that.
import numpy as np
from sentences import negative, positive

texts = np.array(
    [text for of_topic in [positive, negative] for t in of_topic.values() for text in t]
)
labels = np.repeat(["positive", "negative"], len(texts) // 2)

# %%
# Four representations of the same texts. The prefixes come with the library.
from prefixembed.tasks import demo_bank

banks = {
    "bare backbone": demo_bank(active=[]),
    "sst2 alone": demo_bank(active=["sst2"]),
    "bank of five, concatenated": demo_bank(),
    "bank of five, mean": demo_bank(combine="mean"),
}

# %%
# A head learns from 2 to 8 texts per class and is tested on the others. Each size is repeated with
# 50 random draws of the training texts, the same ones for each representation.
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sizes = [2, 4, 8]
head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
scores = {}
for name, bank in banks.items():
    vectors = bank.transform(texts)
    scores[name] = np.array(
        [
            cross_val_score(
                head,
                vectors,
                labels,
                cv=StratifiedShuffleSplit(50, train_size=2 * n, random_state=0),
            )
            for n in sizes
        ]
    )  # (size, draw)
    print(f"{name:27}", *scores[name].mean(axis=1).round(2))

# %%
# Lines are means over the draws. Bands hold the middle half of the draws, and the dashed line is
# chance.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
for name, accuracy in scores.items():
    axes.plot(sizes, accuracy.mean(axis=1), marker="o", label=name)
    axes.fill_between(sizes, *np.quantile(accuracy, [0.25, 0.75], axis=1), alpha=0.15)
axes.axhline(0.5, color="0.5", linestyle="--", linewidth=1)
axes.set(xlabel="training texts per class", ylabel="test accuracy", xscale="log", ylim=(0.3, 1))
axes.set_xticks(sizes, sizes)
axes.minorticks_off()
axes.grid(alpha=0.3)
axes.legend(frameon=False, loc="upper left")
plt.show()

# %%
# With 8 texts per class, the head stays near chance on the bare backbone, whose vectors are mostly
# about the topics. The related source task makes up for the labels that are missing. The bank of
# five does as well without being told which prefix is the right one. Their mean is weaker: it
# divides the effect of each prefix by their number. A target that is related to no source task
# gains little.
