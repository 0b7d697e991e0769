"""From tokens to vectors, as many texts at a time as fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefixembed._embed.batches import expand, pad_batch, plan_batches, word_slots
from prefixembed._embed.texts import Text, Words, is_pairs
from prefixembed._embed.tokens import Tokens
from prefixembed._model.attention import Attend
from prefixembed._model.pooling import pair_vectors, pool, pool_words
from prefixembed.backbone import Backbone
from prefixembed.reading import Reading

# Tokens per padded batch. On a CPU, the activations of a layer should stay in its cache; on other
# devices, each kernel should have enough to do.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}


def resolve_batch_tokens(batch_tokens: int | str, device: torch.device) -> int:
    """Return the token budget of a batch; ``"auto"`` depends on the device."""
    if isinstance(batch_tokens, str):
        return _BATCH_TOKENS.get(device.type, 8192)
    return int(batch_tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` means that the device ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message
    )


def check_readable(reading: Reading, texts: Sequence[Text]) -> None:
    """Check that texts of this kind can be read as a reading says.

    Parameters
    ----------
    reading : Reading
        How texts are to be read.
    texts : sequence of str, of (str, str) or of Words
        Checked texts. None at all can always be read.

    Raises
    ------
    ValueError
        If windows are asked for with joint pairs or words, or a prompt with words.
    """
    if not len(texts):
        return
    if isinstance(texts[0], Words):
        if reading.windows:
            raise ValueError("on_truncate='window' returns one vector per text, not per word")
        if reading.prompt:
            raise ValueError(f"prompt must be empty for sentences in words, got {reading.prompt!r}")
    elif reading.windows and is_pairs(texts) and reading.pairs != "apart":
        raise ValueError(
            "on_truncate='window' reads each text by itself, and pairs='joint' makes one sequence "
            "of two: use pairs='apart'"
        )


def embed_tokens(
    backbone: Backbone,
    tokens: Tokens,
    attend: Attend | None,
    reading: Reading,
    batch_tokens: int,
    progress: Callable[[int], Any] = int,
) -> NDArray[np.float32]:
    """Return one vector per text or word. If the device runs out of memory, the budget is halved.

    Parameters
    ----------
    backbone : Backbone
        The frozen encoder.
    tokens : Tokens
        Tokenized texts.
    attend : Attend or None
        What the layers attend to beside the tokens.
    reading : Reading
        How texts are read.
    batch_tokens : int
        Token budget of a batch.
    progress : callable, default=int
        Called with the number of texts of each batch that is done.

    Returns
    -------
    vectors : ndarray of shape (n_texts, n_features), or (n_words, n_features)
        In the order of `tokens`.

    Raises
    ------
    FloatingPointError
        If a vector is not finite.
    torch.OutOfMemoryError, MemoryError or RuntimeError
        If a single text does not fit.
    """
    lengths = tokens.lengths
    ends = np.cumsum(tokens.n_vectors)
    width = tokens.vector_width(backbone.n_features)
    vectors = np.empty((ends[-1] if len(ends) else 0, width), dtype=np.float32)
    batches = plan_batches(lengths, batch_tokens)[::-1]  # popped from the end: longest first
    done = []
    while batches:
        positions = batches.pop()
        try:
            done.append((positions, _embed_batch(backbone, tokens, positions, attend, reading)))
        except (RuntimeError, MemoryError) as error:
            if len(positions) == 1 or not is_out_of_memory(error):
                raise
            batch_tokens = max(1, int(lengths[positions].max()) * len(positions) // 2)
            left = np.concatenate([positions, *batches[::-1]])
            batches = [left[b] for b in plan_batches(lengths[left], batch_tokens)][::-1]
            if backbone.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        progress(len(positions))
    # Fetched last: the device works on its queue while the next batches are laid out.
    for positions, pooled in done:
        vectors[expand(positions, ends)] = pooled.cpu().numpy()
    check_finite(vectors, backbone)
    return vectors


def check_finite(vectors: NDArray[np.float32], backbone: Backbone) -> None:
    """Check that vectors are finite.

    Parameters
    ----------
    vectors : ndarray of shape (n_vectors, n_features)
        Vectors.
    backbone : Backbone
        The backbone that computed them.

    Raises
    ------
    FloatingPointError
        If one is infinite or NaN.
    """
    if np.isfinite(vectors).all():
        return
    n_bad = int((~np.isfinite(vectors)).any(axis=1).sum())
    raise FloatingPointError(
        f"{n_bad} of {len(vectors)} vectors are not finite: backbone {backbone.name!r}, or a "
        f"prefix, leaves the range of {backbone.dtype}. In float16 that can happen to any "
        "text, and dtype='bfloat16' or 'float32' helps; otherwise learning_rate was too high"
    )


@torch.inference_mode()
def _embed_batch(
    backbone: Backbone,
    tokens: Tokens,
    positions: NDArray[np.intp],
    attend: Attend | None,
    reading: Reading,
) -> torch.Tensor:
    return encode_batch(backbone, tokens, positions, attend, reading)


def encode_batch(
    backbone: Backbone,
    tokens: Tokens,
    positions: NDArray[np.intp],
    attend: Attend | None,
    reading: Reading,
) -> torch.Tensor:
    """Run some texts through a backbone, with gradients.

    Parameters
    ----------
    backbone : Backbone
        The encoder.
    tokens : Tokens
        Tokenized texts.
    positions : ndarray of shape (batch,)
        Positions of the texts of the batch.
    attend : Attend or None
        What the layers attend to beside the tokens.
    reading : Reading
        How texts are read. The token vectors of a word are averaged.

    Returns
    -------
    vectors : Tensor of shape (batch, feature), or (word, feature) of sentences in words
        In float32, text by text. Pairs that are read apart are combined by
        :func:`~prefixembed._model.pooling.pair_vectors`.
    """
    if tokens.second is not None:
        one, two = (
            encode_batch(backbone, some, positions, attend, reading)
            for some in (replace(tokens, second=None), tokens.second)
        )
        return pair_vectors(one, two)
    batch = pad_batch(tokens, positions, backbone.pad_id)
    hidden, mask = backbone.forward(batch, attend, reading)
    if tokens.words is None:
        return pool(hidden, mask, reading.pooling)
    slots = torch.from_numpy(word_slots(tokens, positions, hidden.shape[1])).to(hidden.device)
    return pool_words(hidden, slots, int(tokens.n_vectors[positions].sum()))
