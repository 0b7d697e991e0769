"""
One vector a word
=================

With ``output="words"`` a bank gives a vector for each word of a sentence, for heads that tag, and
a source task may have a label a word. Here: what does a name do in a line of Python?
"""

# %%
# Lines of the standard library, and the role of each name in them.
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
    """Give words and roles of the lines of a module's source."""
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
# A source task with a label a word.
from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone

encoder = PrefixEncoder(
    demo_backbone(),
    objective="token_classification",
    learning_rate=0.03,
    max_epochs=6,
    random_state=0,
)
encoder.fit(train, train_roles)

# %%
# Rows of ``transform`` are words, sentence after sentence, and the head is any classifier. The
# demo backbone was trained to say what a whole sentence is about: a word in its last layer has
# taken on much of the others, and is harder to tell from them than by itself. Lower layers know
# more of words, and a prefix turns the backbone towards the task.
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

y_train, y_test = np.concatenate(train_roles), np.concatenate(test_roles)
names = y_test != "sign"  # signs are told easily


def tag(train: list[list[str]], test: list[list[str]], **parameters: object) -> np.ndarray:
    """Predict a role for each word of the test lines."""
    bank = PrefixBank({"roles": encoder}, output="words", **parameters)
    head = make_pipeline(bank, StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return head.fit(train, y_train).predict(test)


def apart(lines: list[list[str]]) -> list[list[str]]:
    """Make each word a line of its own."""
    return [[word] for words in lines for word in words]


predicted = {
    "each word by itself, bare backbone": tag(apart(train), apart(test), active=[]),
    "in its line": tag(train, test, active=[]),
    "in its line, last 3 layers": tag(train, test, active=[], pooled_layers=3),
    "in its line, prefix": tag(train, test),
    "in its line, prefix, last 3 layers": tag(train, test, pooled_layers=3),
}
for name, guessed in predicted.items():
    print(f"{name:36} {np.mean(guessed[names] == y_test[names]):.3f} of the names")

# %%
# Which roles are taken for which, on a module that neither prefix nor head has seen.
import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay

figure, axes = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
ConfusionMatrixDisplay.from_predictions(
    y_test, guessed, normalize="true", values_format=".2f", cmap="Blues", ax=axes
)
plt.show()
