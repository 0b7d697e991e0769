"""
Which source tasks help?
========================

Some source tasks help a target task, and some harm it. An ablation shows what each prefix adds, and
a selector chooses among them.
"""

# %%
# The target: does a docstring come from pandas or torch, or from another package? It has 120
# labelled texts. The first source task has finer labels on other texts, the second is a different
# task, and the third has random labels.
import numpy as np

from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, load_docstring_task

package, kind = (
    load_docstring_task(name, n_train_per_class=n) for name, n in [("package", 110), ("kind", 40)]
)
rng = np.random.default_rng(0)
order = rng.permutation(len(package.y_train))
few, rest = order[:120], order[120:]
sources = {
    "package": (package.X_train[rest], package.y_train[rest]),
    "kind": (kind.X_train, kind.y_train),
    "noise": (kind.X_train, rng.permutation(kind.y_train)),
}
encoders = {}
for name, (X, y) in sources.items():
    encoder = PrefixEncoder(demo_backbone(), max_steps=60, random_state=0)
    if name == "noise":
        encoder.set_params(learning_rate=0.03, max_steps=32, early_stopping=False)
    encoders[name] = encoder.fit(X, y)
bank = PrefixBank(encoders)


def group(y: np.ndarray) -> np.ndarray:
    """Return the labels of the target for names of packages."""
    return np.where(np.isin(y, ["pandas", "torch"]), "pandas or torch", "other")


X_train, y_train = package.X_train[few], group(package.y_train[few])
X_test, y_test = package.X_test, group(package.y_test)

# %%
# The ablation scores each prefix alone, and the bank without each prefix, on five folds. With few
# texts, the intervals are wide. One that contains zero does not show an effect.
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed.inspection import PrefixAblationDisplay, prefix_ablation

head = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=1000))
folds = StratifiedKFold(5)
found = prefix_ablation(bank, X_train, y_train, head, cv=folds)
PrefixAblationDisplay.from_result(found)

# %%
# Forward selection adds the best prefix until the score no longer improves, on the same folds. Each
# step tries both ways to combine prefixes.
import pandas as pd

from prefixembed import PrefixSelector

selector = PrefixSelector(make_pipeline(bank, *head), combine=["concat", "mean"], cv=folds)
selector.fit(X_train, y_train)
columns = ["step", "param_prefixbank__active", "param_prefixbank__combine", "mean_test_score"]
pd.DataFrame(selector.cv_results_)[columns].round(3)

# %%
# The cross-validated score of the chosen prefixes is optimistic, so we compare on test texts.
print(f"{'chosen: ' + ', '.join(selector.active_):24} {selector.score(X_test, y_test):.3f}")
for name, active in {"whole bank": None, "noise alone": ["noise"], "bare backbone": []}.items():
    rival = make_pipeline(PrefixBank(encoders, active=active), *head).fit(X_train, y_train)
    print(f"{name:24} {rival.score(X_test, y_test):.3f}")
