"""Embed corpora that are larger than memory, shard by shard."""

from prefixembed.corpus.embedding import EmbeddedCorpus, embed_dataset

__all__ = ["EmbeddedCorpus", "embed_dataset"]
