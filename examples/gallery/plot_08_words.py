"""
One vector a word
=================

With ``output="words"`` a bank gives a vector for each word of a sentence, for heads that tag. Here: what does
a name do in a line of Python?
"""

# %%
# Lines of the standard library, and the role of each name in them.
import io
import keyword
import statistics
import textwrap
import tokenize
from pathlib import Path

import numpy as np


def read_lines(module: object) -> tuple[list[list[str]], list[list[str]]]:
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


train, train_roles = read_lines(textwrap)
more, more_roles = read_lines(tokenize)
train, train_roles = [*train, *more], [*train_roles, *more_roles]
test, test_roles = read_lines(statistics)
print(train[20], train_roles[20], sep="\n")

# %%
# Rows of ``transform`` are words, sentence after sentence. The head is any classifier. Another one sees
# the word alone, in a line of its own: what it lacks is the company of the others.
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from prefixembed import PrefixBank
from prefixembed.tasks import demo_backbone

bank = PrefixBank({}, backbone=demo_backbone(), output="words")
head = make_pipeline(bank, StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
y_train, y_test = np.concatenate(train_roles), np.concatenate(test_roles)
head.fit(train, y_train)

alone = make_pipeline(bank, StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
alone.fit([[word] for words in train for word in words], y_train)
print(f"words in their line: {head.score(test, y_test):.3f}")
print(f"words alone:         {alone.score([[w] for words in test for w in words], y_test):.3f}")

# %%
# Which roles are taken for which, on a module that the head has not seen.
import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay

figure, axes = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
ConfusionMatrixDisplay.from_predictions(
    y_test, head.predict(test), normalize="true", values_format=".2f", cmap="Blues", ax=axes
)
plt.show()
