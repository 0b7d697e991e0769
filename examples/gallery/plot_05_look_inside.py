"""
Where attention goes
====================

Prefixes and text compete for the attention of the tokens. The share of each prefix by layer shows
which prefixes matter, and whether they displace the text.
"""

# %%
from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone, load_docstring_task

encoders = {}
for name in ["package", "kind", "name"]:
    source = load_docstring_task(name, n_train_per_class=60)
    encoder = PrefixEncoder(demo_backbone(), prefix_length=5, max_steps=60, random_state=0)
    encoders[name] = encoder.fit(source.X_train, source.y_train)
bank = PrefixBank(encoders)
texts = load_docstring_task("subpackage").X_test[:100]

# %%
# The share of each prefix, averaged over tokens, texts and heads. The rest goes to the text.
from prefixembed.inspection import AttentionShareDisplay

display = AttentionShareDisplay.from_estimator(bank, texts)

# %%
# The share of one prefix in each head.
display.plot(prefix="package")

# %%
# With ``weights`` below one, more attention goes to the text.
AttentionShareDisplay.from_estimator(PrefixBank(encoders, weights=1 / 3), texts)

# %%
# The similarity of prefixes compares their effects on vectors, not their keys and values. Prefixes
# that move vectors in the same direction have learned the same.
from prefixembed.inspection import PrefixSimilarityDisplay

PrefixSimilarityDisplay.from_estimator(bank, texts)
