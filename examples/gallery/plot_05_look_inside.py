"""
Where attention goes
====================

Prefixes compete for the attention of the tokens. How much each of them gets, by layer, tells
which ones have something to say, and whether they crowd out the text.
"""

# %%
from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, load_docstring_task

encoders = {}
for name in ["package", "kind", "name"]:
    source = load_docstring_task(name, n_train_per_class=60)
    encoder = PrefixEncoder(demo_backbone(), learning_rate=0.02, random_state=0)
    encoders[name] = encoder.fit(source.X_train, source.y_train)
bank = PrefixBank(encoders)
texts = load_docstring_task("subpackage").X_test[:100]

# %%
# The share of each prefix, averaged over tokens, texts and heads. What is left belongs to the
# text.
from prefixembed.inspection import AttentionShareDisplay

display = AttentionShareDisplay.from_estimator(bank, texts)

# %%
# The same of one prefix, head by head.
display.plot(prefix="package")

# %%
# With ``weights`` below one, the text gets its attention back.
AttentionShareDisplay.from_estimator(PrefixBank(encoders, weights=1 / 3), texts)

# %%
# Two prefixes that move vectors in the same direction have learned the same. What counts is what
# they do to vectors, not their raw numbers.
from prefixembed.inspection import PrefixSimilarityDisplay

PrefixSimilarityDisplay.from_estimator(bank, texts)
