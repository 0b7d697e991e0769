"""
A map of vectors
================

A prefix changes what the vectors are about. Here, the prefix was learned on the sentiment of film
reviews, and the texts are about other topics.
"""

# %%
# Forty sentences about five topics. Half of them are positive. They stand in ``sentences.py`` and
# are pairs with the same topic and opposite sentiment.
import numpy as np
from sentences import negative, positive

rows = [
    (text, topic, sentiment)
    for sentiment, texts in [("positive", positive), ("negative", negative)]
    for topic in texts
    for text in texts[topic]
]
texts, topics, sentiments = (np.array(column) for column in zip(*rows, strict=True))

# %%
# Two principal components of the same texts, without and with the prefix ``sst2`` of
# :func:`~prefixembed.tasks.demo_bank`. Without it, positive and negative texts are mixed. With it,
# the horizontal axis is mostly sentiment.
import matplotlib.pyplot as plt

from prefixembed.inspection import EmbeddingMapDisplay
from prefixembed.tasks import demo_bank

banks = {"bare backbone": demo_bank(active=[]), "with the prefix sst2": demo_bank(active=["sst2"])}
figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
for axes, (title, bank) in zip(panels, banks.items(), strict=True):
    EmbeddingMapDisplay.from_estimator(bank, texts, sentiments, ax=axes)
    axes.set_title(title)
plt.show()

# %%
# A map shows two of 384 dimensions. The share of the variance between groups uses all of them. The
# prefix raises the share of sentiment about fourfold. The topic remains the larger share: a prefix
# adds to what the backbone knows, and does not replace it.


def share_between(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of the variance that lies between the groups of texts with one label."""
    centred = vectors - vectors.mean(axis=0)
    means = np.array([centred[labels == label].mean(axis=0) for label in labels])
    return float((means**2).sum() / (centred**2).sum())


for title, bank in banks.items():
    vectors = bank.transform(texts)
    for what, labels in {"topic": topics, "sentiment": sentiments}.items():
        print(f"{title:21} variance between {what + 's:':12} {share_between(vectors, labels):.2f}")
