"""What prefixes do: to a target task's score, to attention, to vectors; and plots of it."""

from prefixembed.inspection.displays import (
    AttentionShareDisplay,
    EmbeddingMapDisplay,
    PrefixAblationDisplay,
    PrefixSimilarityDisplay,
    TrainingCurveDisplay,
)
from prefixembed.inspection.functions import (
    attention_share,
    embedding_map,
    prefix_ablation,
    prefix_similarity,
)

__all__ = [
    "AttentionShareDisplay",
    "EmbeddingMapDisplay",
    "PrefixAblationDisplay",
    "PrefixSimilarityDisplay",
    "TrainingCurveDisplay",
    "attention_share",
    "embedding_map",
    "prefix_ablation",
    "prefix_similarity",
]
