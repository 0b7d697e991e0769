"""Everything but the text that decides a vector, and the cache keys made from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefixembed._embed.texts import Text, Words
from prefixembed._utils.properties import cached_property
from prefixembed.reading import Reading

_KEY_BYTES = 20


@dataclass(frozen=True)
class Representation:
    """Describe everything but the text that decides a vector.

    Read more in the :doc:`user guide </guide/cache>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    fingerprint : str
        Fingerprint of the backbone.
    prefixes : tuple of (str, float)
        Digest and weight of each active prefix. Their order does not matter.
    combine : {"concat", "mean"}
        How the prefixes are combined. It does not matter for fewer than two.
    reading : Reading
        How texts are read.
    dtype : str
        Dtype that the backbone computes in.
    fixed_tokens : int, default=None
        Number of tokens of every batch with ``batch_invariant=True``, which decides the bits of a
        vector. None if batches have no fixed shape.
    """

    fingerprint: str
    prefixes: tuple[tuple[str, float], ...]
    combine: str
    reading: Reading
    dtype: str
    fixed_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what decides a vector, as JSON types; equal for equal vectors.

        Returns
        -------
        content : dict of str to object
            Fingerprint, prefixes, how they are combined, dtype, the fields of the reading, and
            `fixed_tokens` if it is not None.
        """
        fixed = {} if self.fixed_tokens is None else {"fixed_tokens": self.fixed_tokens}
        return {
            "fingerprint": self.fingerprint,
            "prefixes": [list(prefix) for prefix in sorted(self.prefixes)],
            "combine": self.combine if len(self.prefixes) > 1 else "",
            "dtype": self.dtype,
            **{f"reading.{name}": value for name, value in self.reading.to_dict().items()},
            **fixed,
        }

    @property
    def digest(self) -> str:
        """Hexadecimal digest of :meth:`to_dict`."""
        return _hash(self.to_dict()).hexdigest()

    @cached_property
    def _seed(self) -> Any:
        # How pairs are read decides which sequences the backbone reads, not the vector of one:
        # a text has one key, by itself and as a part of a pair that is read apart.
        return _hash(replace(self, reading=replace(self.reading, pairs=None)).to_dict())

    def keys(self, texts: Sequence[Text]) -> list[bytes]:
        """Return the key of the vector of each sequence that the backbone reads.

        Parameters
        ----------
        texts : sequence of str, of (str, str) or of Words
            Checked texts. A pair stands for one sequence of both texts.

        Returns
        -------
        keys : list of bytes
            One per text, or one per word of sentences in words. Keys are equal for equal texts
            only.
        """
        if len(texts) and isinstance(texts[0], Words):
            return [key for sentence in texts for key in self._word_keys(sentence)]
        return [self._key(text) for text in texts]

    def _word_keys(self, sentence: Text) -> list[bytes]:
        hashed = self._seed.copy()
        for word in sentence:
            content = word.encode("utf-8", "surrogatepass")
            hashed.update(b"word%d:" % len(content) + content)
        keys = []
        for k in range(len(sentence)):
            one = hashed.copy()
            one.update(b"%d" % k)
            keys.append(bytes(one.digest()))
        return keys

    def _key(self, text: Text) -> bytes:
        hashed = self._seed.copy()
        if isinstance(text, tuple):
            first = text[0].encode("utf-8", "surrogatepass")
            hashed.update(b"pair%d:" % len(first) + first)
            text = text[1]
        else:
            hashed.update(b"text:")
        hashed.update(text.encode("utf-8", "surrogatepass"))
        return bytes(hashed.digest())

    def __getstate__(self) -> dict[str, Any]:
        # The hash object of the seed cannot be pickled.
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _hash(content: dict[str, Any]) -> Any:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=_KEY_BYTES)
