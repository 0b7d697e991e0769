"""
Learn one source task
=====================

A prefix is learned from labelled texts while the backbone stays frozen. The task here is to
predict whether the first line of a docstring belongs to a class, a function or a method.
"""

# %%
# The data and the backbone come from installed packages, so nothing is downloaded.
from prefixembed import PrefixEncoder
from prefixembed.tasks import demo_backbone, load_docstring_task

task = load_docstring_task("kind", n_train_per_class=120)
for text, label in list(zip(task.X_train, task.y_train, strict=True))[:4]:
    print(f"{label:9} {text}")

# %%
# ``fit`` trains a few keys and values in each attention layer, and a linear head.
encoder = PrefixEncoder(demo_backbone(), max_steps=60, random_state=0)
encoder.fit(task.X_train, task.y_train)
print(f"the prefix has {encoder.prefix_.facts()['n_bytes'] / 1000:.0f} kB")

# %%
# The training curve. A tenth of the texts is used for validation, and the state with the lowest
# validation loss is kept.
from prefixembed.inspection import TrainingCurveDisplay

TrainingCurveDisplay.from_estimator(encoder)

# %%
# The encoder is a classifier for its source task.
X_test, y_test = task.X_test[:300], task.y_test[:300]
print(f"accuracy on test texts: {encoder.score(X_test, y_test):.3f}")
for text in ["Return the inverse of a matrix.", "A queue of jobs.", "Sort the values in place."]:
    label = encoder.predict([text])[0]
    print(f"{label:9} {encoder.predict_proba([text]).max():.2f} {text}")

# %%
# It is also a transformer: it returns one fixed vector per text, which any head can read.
print(encoder.transform(["Return the inverse of a matrix."]).shape)
