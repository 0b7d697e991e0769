"""From texts to vectors, chunk by chunk: from the cache, or through the backbone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from prefixembed._embed.batches import expand, first_positions
from prefixembed._embed.combination import Combination
from prefixembed._embed.encoding import check_readable, embed_tokens, resolve_batch_tokens
from prefixembed._embed.quantization import OUTPUT_DTYPES, output_width, quantize
from prefixembed._embed.representation import Representation
from prefixembed._embed.texts import Text, is_pairs, split_pairs, vector_counts
from prefixembed._embed.tokens import Tokens, tokenize, tokenize_windows
from prefixembed._embed.truncation import report_truncated
from prefixembed._files.vector_store import Store
from prefixembed._model.devices import resolve_device, resolve_dtype
from prefixembed._model.extension import Extension
from prefixembed._model.modes import own_modes
from prefixembed._model.pooling import pair_vectors, pool_windows
from prefixembed._utils.properties import cached_property
from prefixembed.backbone import Backbone
from prefixembed.reading import Reading

# Texts that are tokenized, sorted and encoded together: few at first, so that encoding starts
# early, then enough for batches of similar length, and bounded, since they are held in memory.
_FIRST_CHUNK, CHUNK = 2048, 16384


@dataclass(frozen=True)
class Embedder:
    """How texts become vectors, and where known vectors are kept."""

    combination: Combination
    dtype: str
    device: str
    cache: Store | None
    batch_tokens: int | str
    on_truncate: str
    output_dtype: str = "float32"  # of the vectors that are returned; the cache keeps float32
    batch_invariant: bool = False

    @cached_property
    def backbone(self) -> Backbone:
        """Load the backbone, when the first text must be encoded."""
        return self.combination.load_backbone(self.dtype, self.device)

    @cached_property
    def extension(self) -> Extension | None:
        """Return what the prefixes add to the layers of the backbone."""
        return self.combination.extension(self.backbone)

    @cached_property
    def representation(self) -> Representation:
        """Return what decides a vector. Without any prefix, the backbone is loaded for it."""
        fingerprint = self.combination.fingerprint or self.backbone.fingerprint
        device = resolve_device(self.device)
        dtype = str(resolve_dtype(self.dtype, device)).removeprefix("torch.")
        found = self.combination.representation(fingerprint, dtype)
        if not self.batch_invariant:
            return found
        return replace(found, fixed_tokens=resolve_batch_tokens(self.batch_tokens, device, True))

    @property
    def reading(self) -> Reading:
        """How texts are read."""
        return self.combination.reading

    @own_modes(gradients=False)
    def embed_texts(
        self, texts: Sequence[Text], vectors: NDArray[Any], bar: tqdm[Any]
    ) -> NDArray[np.bool_]:
        """Fill `vectors` with one row per text or word, and return which texts were cut.

        Repeated texts are encoded once. `vectors` may lie on disk.
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

    @own_modes(gradients=False)
    def embed_pairs(
        self, pairs: Sequence[Text], vectors: NDArray[Any], bar: tqdm[Any]
    ) -> NDArray[np.bool_]:
        """Fill `vectors` with one row per pair that is read apart, and return which were cut.

        Each text is encoded and cached by itself.
        """
        single = replace(self, output_dtype="float32")
        truncated = np.zeros(len(pairs), dtype=np.bool_)
        for start in range(0, len(pairs), CHUNK // 2):
            rows = slice(start, min(start + CHUNK // 2, len(pairs)))
            texts = split_pairs(pairs[rows])
            both = np.empty((len(texts), self.combination.n_features), dtype=np.float32)
            truncated[rows] = single.embed_texts(texts, both, bar).reshape(2, -1).any(axis=0)
            combined = pair_vectors(*torch.from_numpy(both).chunk(2)).numpy()
            vectors[rows] = quantize(combined, self.output_dtype)
        return truncated

    def report(self, truncated: NDArray[np.bool_]) -> None:
        """Report how many texts were cut."""
        max_length = self.reading.max_length
        report_truncated(int(truncated.sum()), len(truncated), max_length, self.on_truncate)

    def _prepared(
        self, texts: Sequence[Text], chunks: Sequence[NDArray[np.intp]]
    ) -> Iterator[_Chunk]:
        """Yield chunk by chunk, and tokenize the next one while the caller works."""
        with ThreadPoolExecutor(1) as thread:
            coming: Future[_Chunk] | None = None
            for positions in chunks:
                # Everything but the tokenizer runs in this thread, since the current CUDA device
                # and the like belong to the thread of the caller.
                known = self._look_up([texts[k] for k in positions], positions)
                following = thread.submit(self._tokenized, texts, known)
                if coming is not None:
                    yield coming.result()
                coming = following
            if coming is not None:
                yield coming.result()

    def _look_up(self, some: Sequence[Text], positions: NDArray[np.intp]) -> _Chunk:
        """Read the cached vectors of a chunk; load the backbone if some are missing."""
        counts = vector_counts(some)
        ends = np.cumsum(counts)
        vectors = np.empty((counts.sum(), self.combination.n_features), dtype=np.float32)
        truncated = np.zeros(len(some), dtype=np.bool_)
        unknown = np.ones(len(vectors), dtype=np.bool_)
        owners = np.repeat(np.arange(len(some)), counts)
        keys: list[bytes] = []
        if self.cache is not None:
            keys = self.representation.keys(some)
            for k, row in enumerate(self.cache.get(keys)):
                # A row of another length cannot be right, whatever its key says.
                if row is not None and row[0].shape == (self.combination.n_features,):
                    vectors[k], truncated[owners[k]] = row
                    unknown[k] = False
        missing = np.unique(owners[unknown])
        if len(missing):
            _ = self.extension  # loads the backbone, and moves prefixes to it
        return _Chunk(positions, vectors, ends, truncated, missing, keys)

    def _tokenized(self, texts: Sequence[Text], chunk: _Chunk) -> _Chunk:
        if not len(chunk.missing):
            return chunk
        some = [texts[k] for k in chunk.positions[chunk.missing]]
        if self.reading.windows:
            tokens, n_windows = tokenize_windows(self.backbone, some, self.reading)
            return replace(chunk, tokens=tokens, n_windows=n_windows)
        # Pairs arrive here as joint sequences, or as the single texts that they consist of.
        tokens = tokenize(self.backbone, some, replace(self.reading, pairs="joint"))
        chunk.truncated[chunk.missing] = tokens.truncated
        return replace(chunk, tokens=tokens)

    def _fill(self, chunk: _Chunk, bar: tqdm[Any]) -> NDArray[np.float32]:
        """Encode the texts of a chunk that the cache lacks."""
        bar.update(len(chunk.positions) - len(chunk.missing))
        if chunk.tokens is None:
            return chunk.vectors
        invariant = self.batch_invariant
        budget = resolve_batch_tokens(self.batch_tokens, self.backbone.device, invariant)
        tokens, n_windows = chunk.tokens, chunk.n_windows
        # The bar counts texts, not windows.
        progress = bar.update if n_windows is None else int
        encoded = embed_tokens(
            self.backbone, tokens, self.extension, self.reading, budget, progress, invariant
        )
        truncated = np.repeat(tokens.truncated, tokens.n_vectors)
        if n_windows is not None:
            encoded = pool_windows(encoded, tokens.lengths, n_windows, self.reading.pooling)
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
    ends: NDArray[np.intp]  # (chunk,) after the last vector of each text
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
    expects_pairs: bool = False,
) -> NDArray[Any]:
    """Return one vector per text or word: `out`, or the part of it that was written.

    One list of an iterator is held at a time. No texts at all count as pairs if `expects_pairs`.
    """
    dtype = np.dtype(OUTPUT_DTYPES[embedder.output_dtype])
    n_texts: int | None = None
    n_vectors: int | None = None
    lists: Iterator[Sequence[Text]]
    if isinstance(texts, Iterator):
        first: Sequence[Text] = next(texts, [])
        lists = itertools.chain([first], texts)
    else:
        first, lists = texts, iter([texts])
        n_texts, n_vectors = len(texts), int(vector_counts(texts).sum())
    of_pairs = is_pairs(first) if len(first) else expects_pairs
    combination = embedder.combination
    reading = combination.pairs_reading() if of_pairs else combination.reading
    check_readable(reading, first)
    apart = of_pairs and reading.pairs == "apart"
    encode = embedder.embed_pairs if apart else embedder.embed_texts
    width = output_width(reading.width(combination.n_features, of_pairs), embedder.output_dtype)
    if out is not None:
        _check_out(out, (n_vectors, width), dtype)
    elif n_vectors is not None:
        out = np.empty((n_vectors, width), dtype=dtype)
    parts = [np.empty((0, width), dtype=dtype)]
    truncated = [np.zeros(0, dtype=np.bool_)]
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
            truncated.append(encode(some, part, bar))
            n_done += n_some
    embedder.report(np.concatenate(truncated))
    if out is None:
        return np.concatenate(parts)
    return out if n_done == len(out) else out[:n_done]


def _check_out(out: Any, shape: tuple[int | None, int], dtype: np.dtype[Any]) -> None:
    wanted = f"ndarray of {dtype} and shape ({shape[0] or 'n_texts'}, {shape[1]})"
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out must be an {wanted}, got {type(out).__name__}")
    fits = out.ndim == 2 and out.shape[1] == shape[1] and shape[0] in (None, len(out))
    if not fits or out.dtype != dtype:
        raise ValueError(f"out must be an {wanted}, got {out.dtype} and {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only ndarray")
