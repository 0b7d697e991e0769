"""Texts in, vectors out, through what is known already and what is encoded, chunk by chunk."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from prefixembed._embed.batching import (
    Tokens,
    expand,
    first_positions,
    tokenize,
    tokenize_windows,
)
from prefixembed._embed.encoding import embed_tokens, report_truncated, resolve_batch_tokens
from prefixembed._embed.quantization import OUTPUT_DTYPES, output_width, quantize
from prefixembed._embed.texts import PAIR_WIDTH, Text, Words, is_pairs, split_pairs, vector_counts
from prefixembed._model.attention import Attend
from prefixembed._model.pooling import Reading, pair_vectors, pool_windows
from prefixembed.backbone import Backbone
from prefixembed.cache import Representation, VectorCache

# Texts that are tokenized, sorted and encoded together: few at first, so that encoding starts
# early, then enough for batches of like length, and a bound on what is held at once.
_FIRST_CHUNK, CHUNK = 2048, 16384


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors, and where vectors that are known already lie.

    Parameters
    ----------
    representation : Representation
        What decides a vector.
    load : callable
        Gives the backbone and what a forward call carries. It is called when the first text
        must be encoded.
    n_features : int
        Length of a vector.
    cache : VectorCache or None
        Where to look, and to keep what is encoded.
    batch_tokens : int or "auto"
        Budget of a batch.
    on_truncate : {"warn", "raise", "ignore", "window"}
        What to do when texts are cut. In windows, as `representation` has it, none is.
    output_dtype : {"float32", "float16", "int8", "binary"}
        What vectors are given as. What the cache keeps is float32.
    expects_pairs : bool, default=False
        Whether no texts at all are no pairs.
    """

    representation: Representation
    load: Callable[[], tuple[Backbone, Attend | None]]
    n_features: int
    cache: VectorCache | None
    batch_tokens: int | str
    on_truncate: str
    output_dtype: str = "float32"
    expects_pairs: bool = False

    def embed(
        self, texts: Sequence[Text], vectors: NDArray[Any], bar: tqdm[Any]
    ) -> NDArray[np.bool_]:
        """Write one vector a text or a word, encoding repeated texts once.

        Parameters
        ----------
        texts : sequence of str, of (str, str) or of Words
            Checked texts.
        vectors : ndarray of shape (n_vectors, width)
            Filled in the order of `texts`; it may lie on a disk.
        bar : tqdm
            Counts texts.

        Returns
        -------
        truncated : bool ndarray of shape (n_texts,)
            Which texts were cut.

        Raises
        ------
        ValueError
            If a text is to be cut and `on_truncate` is ``"raise"``.
        """
        first = first_positions(texts)
        repeated = first != np.arange(len(texts))
        unique = np.flatnonzero(~repeated)
        truncated = np.zeros(len(texts), dtype=np.bool_)
        ends = np.cumsum(vector_counts(texts))
        chunks = list(_growing_chunks(unique))
        for k, chunk in enumerate(self._prepared(texts, chunks)):
            truncated[chunk.positions] = chunk.truncated
            if self.on_truncate == "raise":
                end = int(chunks[k + 1][0]) if k + 1 < len(chunks) else len(texts)
                self.report(truncated[first[:end]])
            filled = quantize(self._fill(chunk, bar), self.output_dtype)
            vectors[expand(chunk.positions, ends)] = filled
        repetitions = np.flatnonzero(repeated)
        for start in range(0, len(repetitions), CHUNK):
            some = repetitions[start : start + CHUNK]
            vectors[expand(some, ends)] = vectors[expand(first[some], ends)]
            bar.update(len(some))
        return truncated[first]

    def embed_pairs(
        self, pairs: Sequence[Text], vectors: NDArray[Any], bar: tqdm[Any]
    ) -> NDArray[np.bool_]:
        """Write one vector a pair, each text of it being encoded, and cached, by itself.

        Parameters
        ----------
        pairs : sequence of (str, str)
            Checked pairs.
        vectors : ndarray of shape (n_pairs, width)
            Filled in the order of `pairs`; it may lie on a disk.
        bar : tqdm
            Counts texts.

        Returns
        -------
        truncated : bool ndarray of shape (n_pairs,)
            Of which pairs a text was cut.

        Raises
        ------
        ValueError
            If a text is to be cut and `on_truncate` is ``"raise"``.
        """
        single = replace(self, output_dtype="float32")
        truncated = np.zeros(len(pairs), dtype=np.bool_)
        for start in range(0, len(pairs), CHUNK // 2):
            rows = slice(start, min(start + CHUNK // 2, len(pairs)))
            texts = split_pairs(pairs[rows])
            both = np.empty((len(texts), self.n_features), dtype=np.float32)
            truncated[rows] = single.embed(texts, both, bar).reshape(2, -1).any(axis=0)
            made = pair_vectors(*torch.from_numpy(both).chunk(2)).numpy()
            vectors[rows] = quantize(made, self.output_dtype)
        return truncated

    @property
    def _reading(self) -> Reading:
        known = self.representation
        return Reading(known.pooling, known.pooled_layers, known.first_position)

    def report(self, truncated: NDArray[np.bool_]) -> None:
        """Say how many texts were cut, as :func:`report_truncated` does."""
        max_length = self.representation.max_length
        report_truncated(int(truncated.sum()), len(truncated), max_length, self.on_truncate)

    def _prepared(
        self, texts: Sequence[Text], chunks: Sequence[NDArray[np.intp]]
    ) -> Iterator[_Chunk]:
        """Give chunk by chunk; the next one is tokenized while one is being worked on."""
        with ThreadPoolExecutor(1) as thread:
            coming: Future[_Chunk] | None = None
            for positions in chunks:
                # All but the tokenizer runs in this thread: what goes by the thread, such as the
                # current CUDA device, is the caller's.
                known = self._look_up([texts[k] for k in positions], positions)
                following = thread.submit(self._tokenized, texts, known)
                if coming is not None:
                    yield coming.result()
                coming = following
            if coming is not None:
                yield coming.result()

    def _look_up(self, some: Sequence[Text], positions: NDArray[np.intp]) -> _Chunk:
        """Find what the cache knows of a chunk, and load the backbone if that is not all."""
        counts = vector_counts(some)
        ends = np.cumsum(counts)
        vectors = np.empty((counts.sum(), self.n_features), dtype=np.float32)
        truncated = np.zeros(len(some), dtype=np.bool_)
        unknown = np.ones(len(vectors), dtype=np.bool_)
        owners = np.repeat(np.arange(len(some)), counts)
        keys: list[bytes] = []
        if self.cache is not None:
            keys = self.representation.keys(some)
            for k, row in enumerate(self.cache.get(keys)):
                # A row of another length is none of ours, whatever its key says.
                if row is not None and row[0].shape == (self.n_features,):
                    vectors[k], truncated[owners[k]] = row
                    unknown[k] = False
        missing = np.unique(owners[unknown])
        if len(missing):
            self.load()
        return _Chunk(positions, vectors, ends, truncated, missing, keys)

    def _tokenized(self, texts: Sequence[Text], chunk: _Chunk) -> _Chunk:
        if not len(chunk.missing):
            return chunk
        some = [texts[k] for k in chunk.positions[chunk.missing]]
        backbone, max_length = self.load()[0], self.representation.max_length
        if self.representation.windows:
            tokenizer = backbone.tokenizer(max_length, max_length // 4)
            tokens, n_windows = tokenize_windows(tokenizer, some, self.representation.prompt)
            return replace(chunk, tokens=tokens, n_windows=n_windows)
        tokenizer = backbone.tokenizer(max_length)
        tokens = tokenize(tokenizer, some, prompt=self.representation.prompt)
        chunk.truncated[chunk.missing] = tokens.truncated
        return replace(chunk, tokens=tokens)

    def _fill(self, chunk: _Chunk, bar: tqdm[Any]) -> NDArray[np.float32]:
        """Encode what is missing of a chunk."""
        bar.update(len(chunk.positions) - len(chunk.missing))
        if chunk.tokens is None:
            return chunk.vectors
        backbone, prefix = self.load()
        budget = resolve_batch_tokens(self.batch_tokens, backbone.device)
        tokens, n_windows = chunk.tokens, chunk.n_windows
        # Texts are counted, not windows.
        progress = bar.update if n_windows is None else int
        encoded = embed_tokens(backbone, tokens, prefix, self._reading, budget, progress)
        truncated = np.repeat(tokens.truncated, tokens.n_vectors)
        if n_windows is not None:
            pooling = self.representation.pooling
            encoded = pool_windows(encoded, tokens.lengths, n_windows, pooling)
            truncated = np.zeros(len(encoded), dtype=np.bool_)
            bar.update(len(encoded))
        rows = expand(chunk.missing, chunk.ends)
        chunk.vectors[rows] = encoded
        if self.cache is not None:
            self.cache.put([chunk.keys[k] for k in rows], encoded, truncated)
        return chunk.vectors


@dataclass(frozen=True)
class _Chunk:
    positions: NDArray[np.intp]  # (chunk,) into all texts
    vectors: NDArray[np.float32]  # (vector, feature), filled where nothing is missing
    ends: NDArray[np.intp]  # (chunk,) behind the last vector of each text
    truncated: NDArray[np.bool_]  # (chunk,)
    missing: NDArray[np.intp]  # into the chunk
    keys: list[bytes]
    tokens: Tokens | None = None  # of the missing texts, or of their windows
    n_windows: NDArray[np.intp] | None = None  # (missing,)


def _growing_chunks(positions: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    start, size = 0, _FIRST_CHUNK
    while start < len(positions):
        yield positions[start : start + size]
        start, size = start + size, min(2 * size, CHUNK)


def embed(
    embedder: Embedder,
    texts: Sequence[Text] | Iterator[list[Text]],
    out: NDArray[Any] | None = None,
    progress: bool = False,
) -> NDArray[Any]:
    """Give one vector a text or a word.

    Parameters
    ----------
    embedder : Embedder
        How.
    texts : sequence of str, of (str, str) or of Words, or iterator of lists of them
        Checked texts. Of an iterator, one list is held at a time.
    out : ndarray of shape (n_vectors, width), default=None
        Where to write. None for a new array.
    progress : bool, default=False
        Show a progress bar.

    Returns
    -------
    vectors : ndarray of shape (n_vectors, width)
        In the order of `texts`; `out` itself, or its part that was written to.

    Raises
    ------
    ValueError
        If `out` does not have the shape or dtype that the vectors need, or what is to be read in
        windows is no plain text.
    """
    dtype = np.dtype(OUTPUT_DTYPES[embedder.output_dtype])
    n_texts: int | None = None
    n_vectors: int | None = None
    lists: Iterator[Sequence[Text]]
    if isinstance(texts, Iterator):
        head: Sequence[Text] = next(texts, [])
        lists = itertools.chain([head], texts)
    else:
        head, lists = texts, iter([texts])
        n_texts, n_vectors = len(texts), int(vector_counts(texts).sum())
    of_pairs = is_pairs(head) if len(head) else embedder.expects_pairs
    apart = of_pairs and embedder.representation.pairs == "apart"
    if embedder.representation.windows and not apart:
        _check_windows(head, of_pairs)
    encode = embedder.embed_pairs if apart else embedder.embed
    n_features = embedder.n_features * (PAIR_WIDTH if apart else 1)
    width = output_width(n_features, embedder.output_dtype)
    if out is not None:
        _check_out(out, (n_vectors, width), dtype)
    elif n_vectors is not None:
        out = np.empty((n_vectors, width), dtype=dtype)
    parts = [np.empty((0, width), dtype=dtype)]
    cut = [np.zeros(0, dtype=np.bool_)]
    n_done = 0
    total = None if n_texts is None else n_texts * (2 if apart else 1)
    with tqdm(total=total, desc="transform", unit="text", disable=not progress) as bar:
        for some in lists:
            n_some = int(vector_counts(some).sum())
            if out is None:
                part = np.empty((n_some, width), dtype=dtype)
                parts.append(part)
            else:
                part = out[n_done : n_done + n_some]
                if len(part) < n_some:
                    raise ValueError(f"out has {len(out)} rows, and X has more texts")
            cut.append(encode(some, part, bar))
            n_done += n_some
    embedder.report(np.concatenate(cut))
    if out is None:
        return np.concatenate(parts)
    return out if n_done == len(out) else out[:n_done]


def _check_windows(head: Sequence[Text], of_pairs: bool) -> None:
    if of_pairs:
        raise ValueError(
            "on_truncate='window' reads each text by itself, and pairs='joint' makes one sequence "
            "of two: take pairs='apart'"
        )
    if len(head) and isinstance(head[0], Words):
        raise ValueError("on_truncate='window' gives one vector a text, got output='words'")


def _check_out(out: Any, shape: tuple[int | None, int], dtype: np.dtype[Any]) -> None:
    wanted = f"ndarray of {dtype} and shape ({shape[0] or 'n_texts'}, {shape[1]})"
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out must be an {wanted}, got {type(out).__name__}")
    fits = out.ndim == 2 and out.shape[1] == shape[1] and shape[0] in (None, len(out))
    if not fits or out.dtype != dtype:
        raise ValueError(f"out must be an {wanted}, got {out.dtype} and {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only ndarray")
