"""
A map of vectors
================

What a source task has learned shows in how vectors lie: texts of one label move together. The
texts here are none that the prefix has seen.
"""

# %%
import matplotlib.pyplot as plt

from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.inspection import EmbeddingMapDisplay
from prefixembed.tasks import demo_backbone, load_docstring_task

source = load_docstring_task("package", n_train_per_class=80)
encoder = PrefixEncoder(demo_backbone(), learning_rate=0.02, random_state=0)
encoder.fit(source.X_train, source.y_train)

# %%
# The same test texts without and with the prefix, in two dimensions by principal components.
banks = {
    "bare backbone": PrefixBank({}, backbone=demo_backbone()),
    "with the prefix of 'package'": PrefixBank({"package": encoder}),
}
figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
for axes, (title, bank) in zip(panels, banks.items(), strict=True):
    EmbeddingMapDisplay.from_estimator(bank, source.X_test[:400], source.y_test[:400], ax=axes)
    axes.set_title(title)
plt.show()

# %%
# Two dimensions of 384 are few. How well labels can be told from their neighbours, in all of
# them:
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

for title, bank in banks.items():
    vectors = bank.transform(source.X_test[:400])
    accuracy = cross_val_score(KNeighborsClassifier(10), vectors, source.y_test[:400]).mean()
    print(f"{title:30} {accuracy:.3f}")
