"""
Which source tasks help?
========================

Not every source task helps a target, and some get in its way. An ablation tells what each adds, and a
selector chooses.
"""

# %%
# Three source tasks. The last one has labels without any sense.
import numpy as np

from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, load_docstring_task

encoders = {}
for name in ["package", "kind", "noise"]:
    source = load_docstring_task("package" if name == "noise" else name, n_train_per_class=60)
    y = source.y_train
    if name == "noise":
        y = np.random.default_rng(0).permutation(y)
    encoder = PrefixEncoder(
        demo_backbone(), learning_rate=0.02, early_stopping=False, random_state=0
    )
    encoders[name] = encoder.fit(source.X_train, y)

bank = PrefixBank(encoders)

# %%
# The target task, and the head that reads the vectors.
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

target = load_docstring_task("subpackage", n_train_per_class=20)
head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))

# %%
# Each prefix alone, and the bank without each, over the same five folds of the training texts. Intervals take
# into account that folds share training texts.
from prefixembed.displays import PrefixAblationDisplay
from prefixembed.inspection import prefix_ablation

found = prefix_ablation(bank, target.X_train, target.y_train, head, cv=5)
PrefixAblationDisplay.from_result(found)

# %%
# A forward selection adds the best prefix until none adds to the score of cross-validation. Both ways
# to combine are tried at every step.
import pandas as pd

from prefixembed import PrefixSelector

selector = PrefixSelector(make_pipeline(bank, *head), combine=["concat", "mean"], cv=5)
selector.fit(target.X_train, target.y_train)
columns = ["step", "param_prefixbank__active", "param_prefixbank__combine", "mean_test_score"]
pd.DataFrame(selector.cv_results_)[columns].round(3)

# %%
# The score of what was chosen flatters, since it chose. Test texts took no part.
whole = make_pipeline(bank, *head).fit(target.X_train, target.y_train)
print("chosen:", selector.active_)
print(f"chosen, on test texts:         {selector.score(target.X_test, target.y_test):.3f}")
print(f"whole bank, on test texts:     {whole.score(target.X_test, target.y_test):.3f}")
bare = make_pipeline(bank.without(*bank), *head).fit(target.X_train, target.y_train)
print(f"bare backbone, on test texts:  {bare.score(target.X_test, target.y_test):.3f}")
