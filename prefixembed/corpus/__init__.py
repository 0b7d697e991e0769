"""Embed corpora that do not fit into memory, shard by shard."""

from prefixembed.corpus.embedding import EmbeddedCorpus, embed_dataset

__all__ = ["EmbeddedCorpus", "embed_dataset"]
