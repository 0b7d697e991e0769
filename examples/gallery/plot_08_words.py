"""
One vector per word
===================

With ``output="words"``, a bank returns one vector per word, for heads that tag words. A source task
can have one label per word, too. The task here is the role of each name in a line of Python.
"""

# %%
# The data: lines of the standard library, and the role of each name.
import io
import keyword
import queue
import shlex
import statistics
import textwrap
import tokenize
from pathlib import Path
from types import ModuleType

import numpy as np


def read_lines(module: ModuleType) -> tuple[list[list[str]], list[list[str]]]:
    """Return the words of each line of a module, and their roles."""
    lines: list[list[str]] = []
    roles: list[list[str]] = []
    words: list[str] = []
    tags: list[str] = []
    source = io.StringIO(Path(module.__file__).read_text(encoding="utf-8"))
    tokens = list(tokenize.generate_tokens(source.readline))
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if token.type == tokenize.NEWLINE:
            if len(words) > 3:
                lines.append(words)
                roles.append(tags)
            words, tags = [], []
        elif token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            role = "attribute" if before.string == "." else "variable"
            role = "definition" if before.string in ("def", "class") else role
            words.append(token.string)
            tags.append("call" if after.string == "(" and role != "definition" else role)
        elif token.type in (tokenize.NAME, tokenize.OP):
            words.append(token.string)
            tags.append("sign")
    return lines, roles


train, train_roles = [], []
for module in [queue, shlex, textwrap]:
    lines, roles = read_lines(module)
    train, train_roles = train + lines, train_roles + roles
test, test_roles = read_lines(statistics)
for k in [9, 30]:
    print(*map("/".join, zip(train[k], train_roles[k], strict=True)))

# %%
# A source task with one label per word.
from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone

encoder = PrefixEncoder(
    demo_backbone(), objective="token_classification", max_steps=72,
    random_state=0,
)  # fmt: skip
encoder.fit(train, train_roles)

# %%
# Each row of ``transform`` is a word, and the head is any classifier. The demo backbone was trained
# on whole sentences. In its last layer, the vector of a word depends much on the words around it,
# and is harder to classify than the word by itself. Lower layers keep more of the word, and a
# prefix adapts the backbone to the task.
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

y_train, y_test = np.concatenate(train_roles), np.concatenate(test_roles)
names = y_test != "sign"  # signs are easy to recognize


def tag(train: list[list[str]], test: list[list[str]], **parameters: object) -> np.ndarray:
    """Predict a role for each word of the test lines."""
    bank = PrefixBank({"roles": encoder}, output="words", **parameters)
    head = make_pipeline(bank, StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return head.fit(train, y_train).predict(test)


def isolate(lines: list[list[str]]) -> list[list[str]]:
    """Return one line per word."""
    return [[word] for words in lines for word in words]


predicted = {
    "single words": tag(isolate(train), isolate(test), active=[]),
    "lines": tag(train, test, active=[]),
    "lines, last 3 layers": tag(train, test, active=[], pooled_layers=3),
    "lines, prefix": tag(train, test),
    "lines, prefix, last 3 layers": tag(train, test, pooled_layers=3),
}
for name, y_pred in predicted.items():
    print(f"{name:30} accuracy on names {np.mean(y_pred[names] == y_test[names]):.3f}")

# %%
# Confusions of the last row, on a module that neither the prefix nor the head has seen.
import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay

figure, axes = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
ConfusionMatrixDisplay.from_predictions(
    y_test, y_pred, normalize="true", values_format=".2f", cmap="Blues", ax=axes
)
plt.show()
