"""Inspect what prefixes do to scores, to layers and to vectors, and plot it."""

from prefixembed.inspection.ablation import prefix_ablation
from prefixembed.inspection.attention import attention_share
from prefixembed.inspection.displays import (
    EmbeddingMapDisplay,
    PrefixAblationDisplay,
    PrefixSimilarityDisplay,
)
from prefixembed.inspection.shares import AttentionShareDisplay, SlotShareDisplay
from prefixembed.inspection.slots import slot_share
from prefixembed.inspection.training_curve import TrainingCurveDisplay
from prefixembed.inspection.vectors import embedding_map, prefix_similarity

__all__ = [
    "AttentionShareDisplay",
    "EmbeddingMapDisplay",
    "PrefixAblationDisplay",
    "PrefixSimilarityDisplay",
    "SlotShareDisplay",
    "TrainingCurveDisplay",
    "attention_share",
    "embedding_map",
    "prefix_ablation",
    "prefix_similarity",
    "slot_share",
]
