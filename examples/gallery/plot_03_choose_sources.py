"""
Which source tasks help?
========================

Not every source task helps a target, and some get in its way. An ablation tells what each adds,
and a selector chooses.
"""

# %%
# The target: is a docstring of pandas or torch, or of another package? It has 120 labelled texts.
# One source task has more texts with finer labels, one asks for something else, and one has
# labels without any sense, learned by heart.
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
    encoder = PrefixEncoder(demo_backbone(), learning_rate=0.02, random_state=0)
    if name == "noise":
        encoder.set_params(learning_rate=0.03, max_epochs=8, early_stopping=False)
    encoders[name] = encoder.fit(X, y)
bank = PrefixBank(encoders)


def group(y: np.ndarray) -> np.ndarray:
    """Make the labels of the target from names of packages."""
    return np.where(np.isin(y, ["pandas", "torch"]), "pandas or torch", "other")


X_train, y_train = package.X_train[few], group(package.y_train[few])
X_test, y_test = package.X_test, group(package.y_test)

# %%
# Each prefix alone, and the bank without each, over the same five folds of the training texts.
# Intervals take into account that folds share training texts. With so few texts they are wide:
# what an ablation does not tell apart, it says.
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed.inspection import PrefixAblationDisplay, prefix_ablation

head = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=1000))
found = prefix_ablation(bank, X_train, y_train, head, cv=5)
PrefixAblationDisplay.from_result(found)

# %%
# A forward selection adds the best prefix until none adds to the score of cross-validation. Both
# ways to combine are tried at every step.
import pandas as pd

from prefixembed import PrefixSelector

selector = PrefixSelector(make_pipeline(bank, *head), combine=["concat", "mean"], cv=5)
selector.fit(X_train, y_train)
columns = ["step", "param_prefixbank__active", "param_prefixbank__combine", "mean_test_score"]
pd.DataFrame(selector.cv_results_)[columns].round(3)

# %%
# The score of what was chosen flatters, since it chose. Test texts took no part.
print(f"{'chosen: ' + ', '.join(selector.active_):24} {selector.score(X_test, y_test):.3f}")
for name, active in {"whole bank": None, "noise alone": ["noise"], "bare backbone": []}.items():
    rival = make_pipeline(PrefixBank(encoders, active=active), *head).fit(X_train, y_train)
    print(f"{name:24} {rival.score(X_test, y_test):.3f}")
