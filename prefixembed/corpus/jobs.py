"""The work on a corpus: one shard a job, on whatever joblib works on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from joblib.parallel import get_active_backend
from tqdm.auto import tqdm

from prefixembed._embed.encoding import count_truncated
from prefixembed._embed.texts import Text, check_texts, check_words
from prefixembed._embed.transformer import TextTransformer
from prefixembed._utils.warnings import warn
from prefixembed.bank import PrefixBank
from prefixembed.corpus.shards import (
    digest_texts,
    look_at,
    read_facts,
    shard_name,
    unpack,
    write_shard,
)
from prefixembed.multitask import MultiTaskEncoder

if TYPE_CHECKING:
    from datasets import Features

BACKBONE = ".backbone-"  # folder, while others work
_SAME_IN_BANK = ("batch_tokens", "on_truncate", "device", "dtype", "output", "output_dtype")


@dataclass(frozen=True)
class Shard:
    """What became of a shard.

    Parameters
    ----------
    path : Path
        Of its file.
    n_rows : int
        Its rows.
    n_truncated : int
        Rows whose text was cut.
    before : {"missing", "damaged", "whole"}
        What :func:`look_at` found.
    """

    path: Path
    n_rows: int
    n_truncated: int
    before: str

    @property
    def is_new(self) -> bool:
        """Tell whether it was made now."""
        return self.before != "whole"


@dataclass(frozen=True, eq=False)  # engines hash what they send
class Worker:
    """Makes one shard, wherever it is sent to.

    Parameters
    ----------
    encoder : TextTransformer
        As :func:`to_send` gives it.
    folder : Path
        Where shards are.
    columns : list of str
        One of texts, or two of pairs.
    vector_column : str
        Name of the column that is added.
    features : datasets.Features or None
        Types of the others, where they are known.
    file_format : str
        One of :data:`FORMATS`.
    """

    encoder: TextTransformer
    folder: Path
    columns: list[str]
    vector_column: str
    features: Features | None
    file_format: str

    def __call__(self, index: int, start: int, packed: bytes) -> Shard:
        table = unpack(packed)
        texts: list[Any] = table.column(self.columns[0]).to_pylist()
        if len(self.columns) == 2:
            texts = list(zip(texts, table.column(self.columns[1]).to_pylist(), strict=True))
        path = self.folder / shard_name(index, self.file_format)
        digest = digest_texts(texts)
        rows = f"rows {start} to {start + len(texts) - 1}"
        state = look_at(path)
        if state == "whole":
            facts = read_facts(path)
            if facts["texts"] != digest:
                raise ValueError(
                    f"{path} was made of other texts than {rows} now have: take another folder, "
                    "or remove the files"
                )
            return Shard(path, len(texts), facts["n_truncated"], state)
        checked_texts = self._checked(texts, start)
        with count_truncated() as tally:
            try:
                vectors = np.asarray(self.encoder.transform(checked_texts))
            except (ValueError, FloatingPointError) as error:
                kind = ValueError if isinstance(error, ValueError) else FloatingPointError
                raise kind(f"{error} ({rows} of the dataset)") from error
        words = self.encoder.output == "words"
        counts = np.array([len(words) for words in texts], dtype=np.intp) if words else None
        facts = {"texts": digest, "n_truncated": sum(tally)}
        write_shard(path, table, self.features, self.vector_column, vectors, counts, facts)
        return Shard(path, len(texts), sum(tally), state)

    def _checked(self, texts: list[Any], start: int) -> Sequence[Text]:
        """Refuse what is no text by the name that it has in the dataset."""
        column = self.columns[0] if len(self.columns) == 1 else self.columns
        name = f"dataset[{column!r}]"
        if self.encoder.output == "words":
            return check_words(texts, name, start)
        return check_texts(texts, name, start)


def run(jobs: Iterator[Any], n_rows: int | None, n_jobs: int | None, verbose: bool) -> list[Shard]:
    """Do jobs, in bounded number at a time, by what the user has joblib work on.

    Parameters
    ----------
    jobs : iterator of delayed calls
        Made as they are needed.
    n_rows : int or None
        Of all of them, if that is known.
    n_jobs : int or None
        As joblib has it.
    verbose : bool
        Show a progress bar.

    Returns
    -------
    shards : list of Shard
        In any order.

    Warns
    -----
    UserWarning
        Of each file that was damaged: here, since what workers say is not heard.
    """
    backend, is_joblibs = _backend()
    # Of other backends than joblib's own, some cannot give results as they come, and Dask's never
    # comes to an end where a job fails.
    gives = is_joblibs and backend.supports_return_generator
    # One shard a job: joblib would send more and more together of those that are there already, and
    # hold them all.
    parallel = joblib.Parallel(
        n_jobs, batch_size=1, return_as="generator_unordered" if gives else "list"
    )
    shards = []
    with tqdm(total=n_rows, desc="embed_dataset", unit="row", disable=not verbose) as bar:
        for shard in parallel(jobs):
            shards.append(shard)
            bar.update(shard.n_rows)
            if shard.before == "damaged":
                warn(f"{shard.path} was damaged, and was made again")
    return shards


def _backend() -> tuple[Any, bool]:
    """Give what joblib works on, and whether it is of joblib itself."""
    backend = get_active_backend()[0]
    return backend, type(backend).__module__ == "joblib._parallel_backends"


@contextmanager
def to_send(
    encoder: TextTransformer, folder: Path, n_jobs: int | None
) -> Iterator[TextTransformer]:
    """Give the encoder that goes with every job.

    Parameters
    ----------
    encoder : TextTransformer
        The user's; it is left as it is.
    folder : Path
        That all workers see.
    n_jobs : int or None
        As joblib has it.

    Yields
    ------
    own : TextTransformer
        Of the same vectors.
    """
    own = object.__new__(type(encoder))
    own.__dict__.update(encoder.__dict__)  # what it has loaded, too
    own.__dict__.pop("_sklearn_output_config", None)
    # Each text goes by once: a cache would only grow.
    own.set_params(cache=None, verbose=False).set_output(transform="default")
    backend, is_joblibs = _backend()
    here = getattr(backend, "supports_sharedmem", False) or (
        is_joblibs and joblib.effective_n_jobs(n_jobs) == 1
    )
    if here or not isinstance(own, MultiTaskEncoder):
        yield own
        return
    # A whole backbone would travel with every job and be loaded for each: it is put where workers
    # load it by name, once each. The name tells it from others, which they may still hold.
    known = own._representation()
    place = folder / f"{BACKBONE}{known.fingerprint[:16]}"
    own.save(place)
    parameters = {name: value for name, value in own.get_params().items() if name in _SAME_IN_BANK}
    parameters |= {"pooling": known.pooling, "pooled_layers": known.pooled_layers}
    parameters |= {"pairs": known.pairs, "max_length": known.max_length}
    parameters["prompt"] = known.prompt
    try:
        yield PrefixBank({}, backbone=os.fspath(place), cache=None, **parameters)
    finally:
        shutil.rmtree(place, ignore_errors=True)
