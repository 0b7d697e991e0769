"""
Many predictions from one text
==============================

One pass through the backbone serves any number of target tasks. Each further task only adds the
cost of its head.
"""

# %%
# One target task per subpackage of scipy: does a docstring come from there? One more task is a
# regression: the number of words.
import numpy as np
from sklearn.linear_model import Ridge

from prefixembed import TargetHeads
from prefixembed.tasks import demo_bank, load_docstring_task

data = load_docstring_task("subpackage", n_train_per_class=25)
X = data.X_train
targets = {part: (X, data.y_train == part) for part in np.unique(data.y_train)}
targets["words"] = (X, [len(text.split()) for text in X])

bank = demo_bank()
heads = TargetHeads(bank, heads={"words": Ridge()}).fit(targets)

# %%
# One call returns one column per target.
import pandas as pd

new = ["Compute the roots of a polynomial.", "Hierarchical clustering of points by linkage."]
pd.DataFrame(heads.predict(new), columns=list(heads.heads_), index=new).T

# %%
# The time per text for all predictions hardly grows with the number of targets. There is no cache
# here, so the time includes the backbone.
import timeit

import matplotlib.pyplot as plt
from sklearn.base import clone

texts, counts = data.X_test[:40], [1, 2, 4, 8, 12]
timed = TargetHeads(clone(bank).set_params(cache=None), heads={"words": Ridge()})
seconds = []
for n in counts:
    model = clone(timed).fit(dict(list(targets.items())[-n:]))
    seconds.append(min(timeit.repeat(lambda model=model: model.predict(texts), number=1, repeat=3)))

figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
axes.plot(counts, 1000 * np.array(seconds) / len(texts), marker="o")
axes.set(xlabel="target tasks", ylabel="ms per text, all predictions")
axes.set_ylim(0, 1200 * max(seconds) / len(texts))
axes.grid(alpha=0.3)
plt.show()

# %%
# Targets can be added and removed without changing the others.
heads.add_target("questions", X, ["?" in text for text in [*X[:-1], "?"]])
heads.remove_target("words")
print(*heads.heads_, sep=", ")
