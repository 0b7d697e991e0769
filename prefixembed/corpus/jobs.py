"""The work on a corpus: one job per shard, on any backend of joblib."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pyarrow as pa
from joblib.parallel import get_active_backend
from sklearn.base import clone
from tqdm.auto import tqdm

from prefixembed._embed.texts import check_texts, check_words
from prefixembed._embed.transformer import TextTransformer
from prefixembed._embed.truncation import count_truncated
from prefixembed._utils.warnings import warn
from prefixembed.bank import PrefixBank
from prefixembed.corpus.shards import (
    ShardFacts,
    digest_texts,
    read_facts,
    shard_name,
    shard_state,
    write_shard,
)
from prefixembed.multitask import MultiTaskEncoder

if TYPE_CHECKING:
    from datasets import Features

BACKBONE_FOLDER = ".backbone-"  # prefix of the folder of a fine-tuned backbone during a call


@dataclass(frozen=True)
class ShardReport:
    """The outcome of one job."""

    path: Path
    n_rows: int
    n_truncated: int  # rows whose text was cut
    state_before: str  # state of the file when the job began; see shard_state


@dataclass
class Totals:
    """The sums over all reports; the reports themselves are not kept."""

    n_shards: int = 0
    n_made: int = 0  # shards that were not there before
    n_rows: int = 0
    n_truncated: int = 0

    def add(self, report: ShardReport) -> None:
        """Count one shard."""
        self.n_shards += 1
        self.n_made += report.state_before != "intact"
        self.n_rows += report.n_rows
        self.n_truncated += report.n_truncated


@dataclass(frozen=True, eq=False)  # hashed by identity, since some backends hash what they send
class ShardJob:
    """The job that makes a shard; it is called in a worker."""

    bank: PrefixBank
    folder: Path
    columns: list[str]  # one of texts, or two of pairs
    vector_column: str
    features: Features | None  # types of the columns, if the dataset declares them
    file_format: str

    def __call__(self, index: int, start: int, rows: bytes) -> ShardReport:
        """Make shard `index`, whose first row is row `start` of the dataset, if it is missing."""
        table = table_from_bytes(rows)
        texts: list[Any] = table.column(self.columns[0]).to_pylist()
        if len(self.columns) == 2:
            texts = list(zip(texts, table.column(self.columns[1]).to_pylist(), strict=True))
        path = self.folder / shard_name(index, self.file_format)
        where = f"rows {start} to {start + len(texts) - 1} of the dataset"
        digest = digest_texts(texts)
        state = shard_state(path)
        if state == "intact":
            facts = read_facts(path)
            if facts.texts != digest:
                raise ValueError(
                    f"{path} holds vectors of other texts than {where} now: use another folder, "
                    "or delete the files"
                )
            return ShardReport(path, len(texts), facts.n_truncated, state)
        column = self.columns[0] if len(self.columns) == 1 else self.columns
        in_words = self.bank.output == "words"
        check = check_words if in_words else check_texts
        checked = check(texts, f"dataset[{column!r}]", start)  # the name that texts have there
        with count_truncated() as n_truncated:
            try:
                vectors = np.asarray(self.bank.transform(checked))
            except (ValueError, FloatingPointError) as error:
                kind = ValueError if isinstance(error, ValueError) else FloatingPointError
                raise kind(f"{error} ({where})") from error
        counts = np.array([len(words) for words in texts], dtype=np.intp) if in_words else None
        facts = ShardFacts(digest, sum(n_truncated))
        write_shard(path, table, self.features, self.vector_column, vectors, counts, facts)
        return ShardReport(path, len(texts), facts.n_truncated, state)


def run_jobs(
    job: ShardJob,
    tables: Iterator[tuple[int, pa.Table]],
    n_rows: int | None,
    n_jobs: int | None,
    verbose: bool,
) -> Totals:
    """Make all shards on the backend that is active in joblib, and count them.

    Each table comes with the number of its first row. Tables are read as they are needed, a bounded
    number at a time.
    """
    backend, is_joblibs_own = _active_backend()
    # Some backends of other libraries cannot return results one by one, and Dask's hangs if a job
    # fails.
    one_by_one = is_joblibs_own and backend.supports_return_generator
    # A fixed batch size: joblib would send more and more shards at once while it finds them
    # made already, and hold all of them in memory.
    parallel = joblib.Parallel(
        n_jobs, batch_size=1, return_as="generator_unordered" if one_by_one else "list"
    )
    calls = (
        joblib.delayed(job)(index, start, table_to_bytes(table))
        for index, (start, table) in enumerate(tables)
    )
    totals = Totals()
    with tqdm(total=n_rows, desc="embed_dataset", unit="row", disable=not verbose) as bar:
        for report in parallel(calls):
            totals.add(report)
            bar.update(report.n_rows)
            if report.state_before == "damaged":  # warnings of workers do not reach the user
                warn(f"{report.path} was damaged and has been made again")
    return totals


@contextmanager
def bank_for_jobs(
    encoder: TextTransformer, bank: PrefixBank, folder: Path, n_jobs: int | None
) -> Iterator[PrefixBank]:
    """Provide the bank that travels with each job: a copy that returns arrays.

    If workers are other processes, a fine-tuned backbone lies in `folder` during the call.
    """
    # Most corpora hold each text once: a cache would only grow.
    bank = clone(bank).set_params(cache=None, verbose=False).set_output(transform="default")
    if not isinstance(encoder, MultiTaskEncoder) or _stays_in_process(n_jobs):
        yield bank
        return
    # The bank names a temporary folder of this machine. Workers load a backbone by its name, once
    # each; the fingerprint keeps it apart from others that they have loaded.
    place = folder / f"{BACKBONE_FOLDER}{bank.representation().fingerprint[:16]}"
    encoder.save(place)
    try:
        yield bank.set_params(backbone=os.fspath(place))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def table_to_bytes(table: pa.Table) -> bytes:
    """Return rows as bytes, which every backend can send.

    A pickled slice of a table would carry all of that table.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def table_from_bytes(rows: bytes) -> pa.Table:
    """Return the rows that :func:`table_to_bytes` made bytes of."""
    with pa.ipc.open_stream(rows) as stream:
        return stream.read_all()


def _stays_in_process(n_jobs: int | None) -> bool:
    backend, is_joblibs_own = _active_backend()
    return getattr(backend, "supports_sharedmem", False) or (
        is_joblibs_own and joblib.effective_n_jobs(n_jobs) == 1
    )


def _active_backend() -> tuple[Any, bool]:
    """Return the backend that joblib will use, and whether it belongs to joblib itself."""
    backend = get_active_backend()[0]
    return backend, type(backend).__module__ == "joblib._parallel_backends"
