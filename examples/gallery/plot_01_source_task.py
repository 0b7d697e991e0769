"""
Learn one source task
=====================

A prefix is learned from labelled texts, and the backbone stays frozen. The task: does the first
line of a docstring describe a class, a function or a method?
"""

# %%
# The data and the backbone come from installed packages, so nothing is downloaded.
from prefixembed import PrefixEncoder
from prefixembed.tasks import demo_backbone, load_docstring_task

task = load_docstring_task("kind", n_train_per_class=120)
for text, label in list(zip(task.X_train, task.y_train, strict=True))[:4]:
    print(f"{label:9} {text}")

# %%
# By default, ``fit`` trains 16 hidden units in each feed-forward layer, and a linear head.
encoder = PrefixEncoder(demo_backbone(), max_steps=60, random_state=0)
encoder.fit(task.X_train, task.y_train)
print(f"the prefix has {encoder.prefix_.facts()['n_bytes'] / 1000:.0f} kB")

# %%
# The training curve. A tenth of the texts is kept for validation, and the state with the lowest
# validation loss wins.
from prefixembed.inspection import TrainingCurveDisplay

TrainingCurveDisplay.from_estimator(encoder)

# %%
# The encoder is a classifier for its source task. Chance is the share of the most frequent class.
X_test, y_test = task.X_test[:300], task.y_test[:300]
print(f"accuracy on test texts: {encoder.score(X_test, y_test):.3f}")
print(f"chance: {max((y_test == label).mean() for label in encoder.classes_):.3f}")
for text in ["Return the inverse of a matrix.", "A queue of jobs.", "Sort the values in place."]:
    label = encoder.predict([text])[0]
    print(f"{label:9} {encoder.predict_proba([text]).max():.2f} {text}")

# %%
# It is also a transformer: it returns one vector per text, which any head can use.
print(encoder.transform(["Return the inverse of a matrix."]).shape)
