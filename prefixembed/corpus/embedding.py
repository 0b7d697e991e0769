"""Embed a corpus that is larger than memory, into a folder of shards."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from sklearn.utils._param_validation import StrOptions

from prefixembed._embed.transformer import TextTransformer
from prefixembed._embed.truncation import report_truncated
from prefixembed._files.atomic import file_lock, make_folder
from prefixembed._utils.parameters import PATH, Count, checked
from prefixembed.corpus.columns import TextColumns
from prefixembed.corpus.jobs import BACKBONE_FOLDER, ShardJob, bank_for_jobs, run_jobs
from prefixembed.corpus.recipe import check_recipe, make_recipe
from prefixembed.corpus.shards import DIGEST_FOLDER, FILE_FORMATS, arrow_copy, shard_name
from prefixembed.corpus.sources import open_source

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class EmbeddedCorpus:
    """Files that :func:`embed_dataset` has written.

    Read more in the :doc:`user guide </guide/corpus>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    folder : Path
        Folder of the files.
    n_rows : int
        Number of rows in all files.
    n_shards : int
        Number of files.
    n_made : int
        Number of files that this call made. The others were already there.
    n_truncated : int
        Number of rows, in all files, whose text was longer than `max_length` and was cut.
    seconds : float
        Duration of the call.
    file_format : {"parquet", "arrow"}
        Format of the files.
    """

    __module__ = "prefixembed.corpus"  # pickles refer to the public name

    folder: Path
    n_rows: int
    n_shards: int
    n_made: int
    n_truncated: int
    seconds: float
    file_format: str

    def load(self) -> Dataset:
        """Open the files as one dataset.

        Returns
        -------
        dataset : datasets.Dataset
            Rows in order, mapped into memory. Arrow files are mapped themselves. Of Parquet
            files, an Arrow copy is, which stays in the cache of the datasets library.
        """
        from datasets import Dataset, concatenate_datasets

        files = [self.folder / shard_name(k, self.file_format) for k in range(self.n_shards)]
        if self.file_format != "arrow":
            files = [arrow_copy(file) for file in files]
        return concatenate_datasets([Dataset.from_file(os.fspath(file)) for file in files])


@checked(
    encoder=[TextTransformer],
    dataset="no_validation",
    column=[str, list, tuple],
    out=PATH,
    vector_column=[str],
    shard_size=[Count(1)],
    file_format=[StrOptions(set(FILE_FORMATS))],
    n_jobs=[Integral, None],
    verbose=["verbose"],
)
def embed_dataset(
    encoder: TextTransformer,
    dataset: Any,
    column: str | Sequence[str],
    out: str | os.PathLike[str],
    *,
    vector_column: str = "vector",
    shard_size: int = 10_000,
    file_format: str = "parquet",
    n_jobs: int | None = None,
    verbose: bool = False,
) -> EmbeddedCorpus:
    """Embed the texts of a dataset, and write all of its columns and the vectors to files.

    Memory holds a few shards at a time, however long the dataset is. After an error, Ctrl-C or a
    kill, the same call makes only the files that are missing.

    Read more in the :doc:`user guide </guide/corpus>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    encoder : PrefixBank, PrefixEncoder or MultiTaskEncoder
        Fitted encoder. Its cache is neither read nor filled.
    dataset : datasets.Dataset, datasets.IterableDataset, str, path-like or list of them
        Rows to embed:

        - a dataset or a stream of the datasets library. If a format selects columns, the others
          are not read. A dataset with a transform is refused;
        - Parquet, CSV, JSON or JSONL files, as a path, a pattern such as ``"logs/*.parquet"``, or
          a list of them. CSV and JSON may be compressed, as ``".csv.gz"``. A path that exists
          means itself, whatever characters it has. Files that match a pattern are read in the
          order of their names.

        Files are streamed. All columns of CSV files are text. Columns of JSON files have a type
        that holds the values of all rows, for which the files are read once before.
    column : str or sequence of two str
        Column of texts, or the two columns of pairs. If the encoder has ``output="words"``, a
        column of lists of words.
    out : str or path-like
        Folder to write to. It is created if it does not exist. It gets ``part-000000.parquet``
        and so on, their digests in a hidden folder, and a hidden file ``.corpus.json`` that
        records what decides the vectors.
    vector_column : str, default="vector"
        Name of the column of vectors. It holds lists of a fixed size in the `output_dtype` of the
        encoder; with ``output="words"``, a list of such lists per row, one per word.
    shard_size : int, default=10_000
        Number of rows per file. A kill loses the work on as many rows per worker.
    file_format : {"parquet", "arrow"}, default="parquet"
        Format of the files:

        - ``"parquet"`` is smaller, and more programs read it;
        - ``"arrow"`` is mapped into memory without a copy.
    n_jobs : int, default=None
        Number of workers. :class:`joblib.parallel_config` selects what they are: threads,
        processes, or workers of Dask, Ray or Spark. All of them must see the folder `out`, and
        each process loads its own backbone. None means 1, unless in a
        :class:`joblib.parallel_config` context.
    verbose : bool, default=False
        Whether to show a progress bar with the number of rows per second and the time left.

    Returns
    -------
    corpus : EmbeddedCorpus
        The files. :meth:`EmbeddedCorpus.load` opens them.

    Raises
    ------
    FileNotFoundError
        If a path or pattern matches no file.
    ValueError
        If `dataset` has no rows, lacks `column`, or already has `vector_column`; if a row holds
        something else than text, which the message names by its file and position; if a file
        cannot be read, or its columns have no common types with those of others; if the folder
        holds vectors of another encoder, of other settings or of other texts; or if another call
        is writing to the folder.

    Warns
    -----
    UserWarning
        Once per call if texts were cut, and once for each damaged file, which is made again.

    Notes
    -----
    Each file records a digest of its texts. If the texts of the dataset have changed since, the
    call is refused, so that old and new vectors are never mixed. Changes in other columns are not
    detected.

    Examples
    --------
    >>> import tempfile
    >>> from datasets import Dataset
    >>> from prefixembed import PrefixBank, embed_dataset
    >>> from prefixembed.tasks import demo_backbone
    >>> reviews = Dataset.from_dict({"text": ["a joy", "a bore", "so long"], "stars": [5, 1, 2]})
    >>> bank = PrefixBank({}, backbone=demo_backbone())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus = embed_dataset(bank, reviews, "text", folder, shard_size=2)
    >>> corpus.n_rows, corpus.n_shards, corpus.n_made
    (3, 2, 2)
    """
    started = time.perf_counter()
    bank = encoder.as_bank()
    columns = [column] if isinstance(column, str) else list(column)
    _check_columns(columns, bank.output)
    source = open_source(dataset, TextColumns(columns, bank.output == "words"))
    tables = source.tables(shard_size)
    first = next(tables, None)
    if first is None:
        raise ValueError("dataset has no rows")
    schema = first[1].schema
    _check_vector_column(schema.names, vector_column)
    representation = bank.representation()
    if len(columns) == 2:
        representation = replace(representation, reading=bank.combination().pairs_reading())
    recipe = make_recipe(
        representation,
        output=bank.output,
        output_dtype=bank.output_dtype,
        column=columns,
        vector_column=vector_column,
        shard_size=int(shard_size),
        file_format=file_format,
        types={field.name: str(field.type) for field in schema},
    )
    folder = Path(out).absolute()  # workers may have another working directory
    make_folder(folder / DIGEST_FOLDER)
    with _locked(folder):
        check_recipe(folder, recipe)
        _remove_leftovers(folder)
        with bank_for_jobs(encoder, bank, folder, n_jobs) as own:
            job = ShardJob(own, folder, columns, vector_column, source.features, file_format)
            tables = itertools.chain([first], tables)
            totals = run_jobs(job, tables, source.n_rows, n_jobs, verbose)
        _check_no_other_shards(folder, totals.n_shards, file_format)
    corpus = EmbeddedCorpus(
        folder,
        n_rows=totals.n_rows,
        n_shards=totals.n_shards,
        n_made=totals.n_made,
        n_truncated=totals.n_truncated,
        seconds=time.perf_counter() - started,
        file_format=file_format,
    )
    max_length = representation.reading.max_length
    report_truncated(corpus.n_truncated, corpus.n_rows, max_length, bank.on_truncate)
    return corpus


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = file_lock(folder / ".corpus.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another call of embed_dataset is writing to {os.fspath(folder)!r}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of a call that was killed."""
    for file in [*folder.glob(".part-*"), *(folder / DIGEST_FOLDER).glob(".part-*")]:
        file.unlink()
    for backbone in folder.glob(f"{BACKBONE_FOLDER}*"):
        shutil.rmtree(backbone)


def _check_columns(columns: list[Any], output: str) -> None:
    if not 1 <= len(columns) <= 2 or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"column must be one name, or two names for pairs, got {columns!r}")
    if len(columns) == 2 and output == "words":
        raise ValueError(f"column must be one name if output is 'words', got {columns!r}")


def _check_vector_column(names: list[str], vector_column: str) -> None:
    if vector_column in names:
        raise ValueError(
            f"vector_column={vector_column!r} must not be a column of the dataset, got {names}"
        )


def _check_no_other_shards(folder: Path, n_shards: int, file_format: str) -> None:
    n_others = len(list(folder.glob(f"part-*.{file_format}"))) - n_shards
    if n_others:
        raise ValueError(
            f"{os.fspath(folder)!r} holds {n_others} files beyond the {n_shards} of this dataset, "
            "which has become shorter: use another folder, or delete the files"
        )
