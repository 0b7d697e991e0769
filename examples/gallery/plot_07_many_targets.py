"""
Many predictions from one text
==============================

The reason for all of this: one pass through the backbone serves any number of target tasks. Each
one more costs a product of a vector and a matrix.
"""

# %%
# Eleven target tasks on the docstrings of scipy: for each part of it, whether a text comes from
# there. And one that is a number: how many words the text has.
import numpy as np
from sklearn.linear_model import Ridge

from prefixembed import PrefixBank, PrefixEncoder, TargetHeads
from prefixembed.tasks import demo_backbone, load_docstring_task

source = load_docstring_task("package", n_train_per_class=60)
encoder = PrefixEncoder(demo_backbone(), learning_rate=0.02, random_state=0)
encoder.fit(source.X_train, source.y_train)

data = load_docstring_task("subpackage", n_train_per_class=25)
X = data.X_train
targets = {part: (X, data.y_train == part) for part in np.unique(data.y_train)}
targets["words"] = (X, [len(text.split()) for text in X])

bank = PrefixBank({"package": encoder})
heads = TargetHeads(bank, heads={"words": Ridge()}).fit(targets)

# %%
# One call, one pass, a column a target.
import pandas as pd

new = ["Compute the roots of a polynomial.", "Hierarchical clustering of points by linkage."]
pd.DataFrame(heads.predict(new), columns=list(heads.heads_), index=new).T

# %%
# What a target more costs: all predictions of 100 texts, for a growing number of targets. Nothing
# is cached here, so that the backbone shows.
import timeit

import matplotlib.pyplot as plt
from sklearn.base import clone

texts, counts = data.X_test[:100], [1, 2, 4, 8, 12]
timed = TargetHeads(clone(bank).set_params(cache=None), heads={"words": Ridge()})
seconds = []
for n in counts:
    some = clone(timed).fit(dict(list(targets.items())[-n:]))
    seconds.append(min(timeit.repeat(lambda some=some: some.predict(texts), number=1, repeat=5)))

figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.plot(counts, 1000 * np.array(seconds) / len(texts), marker="o")
axes.set(xlabel="target tasks", ylabel="ms a text, all predictions", ylim=(0, None))
axes.grid(alpha=0.3)
plt.show()

# %%
# A target task comes and goes without touching another.
heads.add_target("questions", X, ["?" in text for text in [*X[:-1], "?"]])
heads.remove_target("words")
print(*heads.heads_, sep=", ")
