"""Text embeddings from one frozen backbone and small, swappable task prefixes.

First public implementation of arXiv 2305.13499, under scikit-learn's grammar. Names are
loaded on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prefixembed._version import __version__

if TYPE_CHECKING:
    from prefixembed._utils.versions import show_versions
    from prefixembed.backbone import Backbone, load_backbone, release_backbones
    from prefixembed.bank import PrefixBank
    from prefixembed.cache import VectorCache
    from prefixembed.choice import ChoiceRanker
    from prefixembed.corpus import EmbeddedCorpus, embed_dataset
    from prefixembed.encoder import PrefixEncoder
    from prefixembed.multitask import MultiTaskEncoder
    from prefixembed.parallel import fill_cache, fit_prefixes
    from prefixembed.prefix import Prefix
    from prefixembed.selection import PrefixSelector, prefix_subsets
    from prefixembed.targets import TargetHeads

_HOMES = {
    "Backbone": "backbone",
    "ChoiceRanker": "choice",
    "EmbeddedCorpus": "corpus",
    "MultiTaskEncoder": "multitask",
    "Prefix": "prefix",
    "PrefixBank": "bank",
    "PrefixEncoder": "encoder",
    "PrefixSelector": "selection",
    "TargetHeads": "targets",
    "VectorCache": "cache",
    "embed_dataset": "corpus",
    "fill_cache": "parallel",
    "fit_prefixes": "parallel",
    "load_backbone": "backbone",
    "prefix_subsets": "selection",
    "release_backbones": "backbone",
    "show_versions": "_utils.versions",
}

__all__ = [
    "Backbone",
    "ChoiceRanker",
    "EmbeddedCorpus",
    "MultiTaskEncoder",
    "Prefix",
    "PrefixBank",
    "PrefixEncoder",
    "PrefixSelector",
    "TargetHeads",
    "VectorCache",
    "__version__",
    "embed_dataset",
    "fill_cache",
    "fit_prefixes",
    "load_backbone",
    "prefix_subsets",
    "release_backbones",
    "show_versions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prefixembed' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"prefixembed.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
