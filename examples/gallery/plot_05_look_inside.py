"""
What prefixes do inside the backbone
====================================

A prefix acts in two places: its slots add to the output of the feed-forward layers, and its keys
and values compete with the text for attention. Both can be measured for each layer.
"""

# %%
# The demo bank has prefixes with slots, the default. The share of each prefix is the norm of what
# its slots add, relative to the output of the layer.
import matplotlib.pyplot as plt

from prefixembed.inspection import SlotShareDisplay
from prefixembed.tasks import demo_bank, load_docstring_task

texts = load_docstring_task("subpackage").X_test[:60]
SlotShareDisplay.from_estimator(demo_bank(), texts)

# %%
# Prefixes that move vectors in the same direction have learned similar things. The similarity
# compares their effects on the vectors.
from prefixembed.inspection import PrefixSimilarityDisplay

PrefixSimilarityDisplay.from_estimator(demo_bank(), texts)

# %%
# For attention, we learn two source tasks with keys and values only, as in the paper.
from prefixembed import PrefixBank, PrefixEncoder
from prefixembed.tasks import demo_backbone

encoders = {}
for name in ["package", "kind"]:
    source = load_docstring_task(name, n_train_per_class=40)
    encoder = PrefixEncoder(
        demo_backbone(), prefix_length=5, ffn_length=0, max_steps=30, random_state=0
    )
    encoders[name] = encoder.fit(source.X_train, source.y_train)

# %%
# The share of attention that each prefix gets, averaged over tokens, texts and heads. The rest goes
# to the text. With ``weights`` of 1/2, prefixes get less and the text gets more. Both maps have the
# same colour scale.
from prefixembed.inspection import AttentionShareDisplay, attention_share

banks = {"weights=1": PrefixBank(encoders), "weights=1/2": PrefixBank(encoders, weights=1 / 2)}
found = {title: attention_share(bank, texts) for title, bank in banks.items()}
highest = max(100 * shares.shares.mean(axis=1).max() for shares in found.values())
figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.6), layout="constrained")
for axes, (title, shares) in zip(panels, found.items(), strict=True):
    AttentionShareDisplay.from_result(shares, ax=axes)
    axes.images[0].set_clim(0, highest)
    axes.set_title(title)
    print(f"{title:12} {shares.shares.sum(axis=2).mean():.0%} of attention goes to the prefixes")
plt.show()
