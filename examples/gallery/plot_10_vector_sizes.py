"""
Small vectors for a store
=========================

A million vectors of 384 floats take 1.5 GB. With ``output_dtype``, they take fewer bytes, and heads
are trained on the small vectors.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from prefixembed import PrefixBank
from prefixembed.tasks import demo_backbone, load_docstring_task

task = load_docstring_task("package", n_train_per_class=150)
X_test, y_test = task.X_test[:600], task.y_test[:600]


def as_numbers(vectors: np.ndarray) -> np.ndarray:
    """Convert stored vectors to floats; binary vectors have eight signs per byte."""
    packed = vectors.dtype == np.uint8
    return np.unpackbits(vectors, axis=1) if packed else vectors.astype(np.float32)


# %%
# The standard error of an accuracy on 600 texts is at most 0.02.
found = {}
for output_dtype in ["float32", "float16", "int8", "binary"]:
    bank = PrefixBank({}, backbone=demo_backbone(), output_dtype=output_dtype)
    head = make_pipeline(
        bank,
        FunctionTransformer(as_numbers),
        StandardScaler(),
        LogisticRegression(C=0.003, max_iter=1000),
    )
    accuracy = head.fit(task.X_train, task.y_train).score(X_test, y_test)
    n_bytes = bank.transform(X_test[:1]).nbytes
    found[output_dtype] = n_bytes, accuracy
    print(f"{output_dtype:8} {n_bytes:5} bytes per text, accuracy {accuracy:.3f}")

# %%
# Error bars are two standard errors. The differences are within them: these texts show no loss of
# accuracy, even at a thirty-second of the size.
figure, axes = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
for name, (n_bytes, accuracy) in found.items():
    error = 2 * (accuracy * (1 - accuracy) / len(y_test)) ** 0.5
    axes.errorbar(n_bytes, accuracy, yerr=error, marker="o", capsize=3)
    axes.annotate(
        name, (n_bytes, accuracy + error), xytext=(0, 6), textcoords="offset points", ha="center"
    )
axes.set(xlabel="bytes per text", ylabel="test accuracy", xscale="log", ylim=(0, 1))
axes.set_xlim(30, 2500)
axes.grid(alpha=0.3)
plt.show()
