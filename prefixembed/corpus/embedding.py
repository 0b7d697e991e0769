"""Corpora that outgrow memory, one process or one machine: embedded shard by shard."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import pyarrow as pa
import torch
import transformers
from filelock import FileLock, Timeout
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from prefixembed._embed.transformer import TextTransformer
from prefixembed._utils.parameters import PATH, Count, checked
from prefixembed._utils.warnings import warn
from prefixembed._version import __version__
from prefixembed.corpus.jobs import BACKBONE, Worker, run, to_send
from prefixembed.corpus.shards import (
    DIGESTS,
    FORMATS,
    open_source,
    pack,
    shard_name,
)
from prefixembed.prefix import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

_RECIPE = ".corpus.json"  # hidden from what reads all files of a folder
_MADE_WITH = "made_with"  # told, and not compared


@dataclass(frozen=True)
class EmbeddedCorpus:
    """What :func:`embed_dataset` has written.

    Parameters
    ----------
    folder : Path
        Where the shards are.
    n_rows : int
        Rows of all shards.
    n_shards : int
        Files.
    n_made : int
        How many of them this call made; the others were there.
    n_truncated : int
        Rows of all shards whose text was longer than ``max_length`` and cut.
    seconds : float
        What this call took.
    file_format : {"parquet", "arrow"}
        What the files are.
    """

    folder: Path
    n_rows: int
    n_shards: int
    n_made: int
    n_truncated: int
    seconds: float
    file_format: str

    def load(self) -> Dataset:
        """Open the shards.

        Returns
        -------
        dataset : datasets.Dataset
            Mapped into memory: Arrow files themselves, and of Parquet files what the datasets
            library keeps of them in its own cache.
        """
        from datasets import Dataset, concatenate_datasets, load_dataset

        names = [shard_name(k, self.file_format) for k in range(self.n_shards)]
        files = [os.fspath(self.folder / name) for name in names]
        if self.file_format == "arrow":
            return concatenate_datasets([Dataset.from_file(file) for file in files])
        return load_dataset("parquet", data_files=files, split="train")


@checked(
    encoder=[TextTransformer],
    dataset="no_validation",
    column=[str, list, tuple],
    out=PATH,
    vector_column=[str],
    shard_size=[Count(1)],
    file_format=[StrOptions(set(FORMATS))],
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
    """Add the vector of each row's text to a corpus, as Parquet or Arrow files.

    Memory holds a few shards, however long the corpus is. The same call again goes on where one was
    stopped, by an error, Ctrl-C or a kill, and ends in the same rows.

    Parameters
    ----------
    encoder : PrefixBank, PrefixEncoder or MultiTaskEncoder
        Fitted. It is copied; its cache has no part in this.
    dataset : datasets.Dataset, datasets.IterableDataset, str, path-like or list of them
        Rows; or Parquet, CSV, JSON or JSONL files, by path or by a pattern such as
        ``"logs/*.parquet"``, which are read as a stream in the order of their names.
    column : str or sequence of two str
        The column of texts, or the two columns of pairs. With ``output="words"`` of the encoder, a
        column of lists of words.
    out : str or path-like
        Folder; made where there is none. ``part-000000.parquet`` and so on; hidden beside them
        their digests, and ``.corpus.json``, which says how vectors were made.
    vector_column : str, default="vector"
        Name of the column of vectors: lists of one fixed size in the encoder's `output_dtype`,
        or with ``output="words"`` a list of such, one a word.
    shard_size : int, default=10_000
        Rows of a file: what is held at once, and what a kill loses at most.
    file_format : {"parquet", "arrow"}, default="parquet"
        Parquet is smaller and read by more programs; Arrow is mapped into memory as it is.
    n_jobs : int, default=None
        Workers, as joblib has it, on the backend that the user picks with
        :class:`joblib.parallel_config`: processes, Dask, Ray and others, which must all see the
        folder `out`. Each loads a backbone of its own. None is one, in this process, unless in
        such a context.
    verbose : bool, default=False
        Show a progress bar of rows, with their number a second and the time left.

    Returns
    -------
    corpus : EmbeddedCorpus
        What was written. :meth:`EmbeddedCorpus.load` opens it.

    Raises
    ------
    FileNotFoundError
        If no file has such a name.
    ValueError
        If there are no rows, or no such column, or one that is named as that of the vectors; if a
        text is none, where the error tells its row; if the folder holds vectors of another
        encoder, of other settings or of other texts; or if another call is at work in it.

    Warns
    -----
    UserWarning
        Once, if texts were cut; and if a file was damaged and is made again.

    Notes
    -----
    A file holds a digest of its texts. Where they have changed, the call is refused rather than
    mixing old and new; what the other columns hold is not looked at.

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
    check_is_fitted(encoder)
    columns = [column] if isinstance(column, str) else list(column)
    _check_columns(columns, encoder)
    source = open_source(dataset)
    tables = source.tables(shard_size)
    head = next(tables, None)
    if head is None:
        raise ValueError("dataset has no rows")
    _check_table(head, columns, vector_column)
    folder = Path(out).absolute()  # workers may have another current folder
    (folder / DIGESTS).mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        recipe = _recipe(encoder, columns, vector_column, shard_size, file_format)
        _check_recipe(folder, recipe | {"types": _types(head)})
        _remove_left(folder)
        with to_send(encoder, folder, n_jobs) as own:
            worker = Worker(own, folder, columns, vector_column, source.features, file_format)
            jobs = enumerate(itertools.chain([head], tables))
            del head
            shards = run(
                (joblib.delayed(worker)(k, k * shard_size, pack(table)) for k, table in jobs),
                source.n_rows, n_jobs, verbose,
            )  # fmt: skip
        _check_complete(folder, len(shards), file_format)
    done = EmbeddedCorpus(
        folder,
        n_rows=sum(shard.n_rows for shard in shards),
        n_shards=len(shards),
        n_made=sum(shard.is_new for shard in shards),
        n_truncated=sum(shard.n_truncated for shard in shards),
        seconds=time.perf_counter() - started,
        file_format=file_format,
    )
    if done.n_truncated and encoder.on_truncate == "warn":
        max_length = encoder._representation().max_length
        warn(
            f"{done.n_truncated} of {done.n_rows} texts are longer than max_length={max_length} "
            "tokens and were cut"
        )
    return done


def _remove_left(folder: Path) -> None:
    """Remove what a call that was killed had not finished."""
    for left in [*folder.glob(".part-*"), *(folder / DIGESTS).glob(".part-*")]:
        left.unlink()
    for left in folder.glob(f"{BACKBONE}*"):
        shutil.rmtree(left)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".corpus.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another embed_dataset is at work in {os.fspath(folder)!r}") from None
    try:
        yield
    finally:
        lock.release()


def _check_columns(columns: list[str], encoder: TextTransformer) -> None:
    if not 1 <= len(columns) <= 2 or not all(isinstance(name, str) for name in columns):
        raise ValueError(f"column must be a name, or two of pairs, got {columns!r}")
    if len(columns) == 2 and encoder.output == "words":
        raise ValueError(f"column must be one of lists of words with output='words', got {columns}")


def _check_table(table: pa.Table, columns: list[str], vector_column: str) -> None:
    for name in columns:
        if name not in table.column_names:
            raise ValueError(f"column must be one of {table.column_names}, got {name!r}")
    if vector_column in table.column_names:
        raise ValueError(f"vector_column is {vector_column!r}, and the dataset has such a column")


def _recipe(
    encoder: TextTransformer,
    columns: list[str],
    vector_column: str,
    shard_size: int,
    file_format: str,
) -> dict[str, Any]:
    """Tell what decides the files, as JSON knows it."""
    how = encoder._representation()
    recipe = {field.name: getattr(how, field.name) for field in fields(how) if field.init}
    recipe |= {"output": encoder.output, "output_dtype": encoder.output_dtype}
    recipe |= {"column": columns, "vector_column": vector_column, "shard_size": int(shard_size)}
    recipe["file_format"] = file_format
    return json.loads(json.dumps(recipe))


def _types(table: pa.Table) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}


def _versions() -> dict[str, str]:
    return {
        "prefixembed": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pyarrow": pa.__version__,
    }


def _check_recipe(folder: Path, recipe: dict[str, Any]) -> None:
    path = folder / _RECIPE
    if not path.exists():
        if any(folder.glob("part-*")):
            raise ValueError(f"{os.fspath(folder)!r} holds files of something else: no {_RECIPE}")
        content = json.dumps({_MADE_WITH: _versions(), **recipe}, indent=1)
        write_atomically(path, lambda file: Path(file).write_text(content))
        return
    try:
        there = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(there, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(there).__name__}")
    there.pop(_MADE_WITH, None)
    differ = [key for key in {**recipe, **there} if recipe.get(key) != there.get(key)]
    if differ:
        told = "; ".join(
            f"{key} {there.get(key)!r} there, {recipe.get(key)!r} here" for key in differ
        )
        raise ValueError(f"{os.fspath(folder)!r} holds vectors that were made otherwise: {told}")


def _check_complete(folder: Path, n_shards: int, file_format: str) -> None:
    n_beyond = len(list(folder.glob(f"part-*.{file_format}"))) - n_shards
    if n_beyond:
        raise ValueError(
            f"{os.fspath(folder)!r} holds {n_beyond} files beyond the {n_shards} of this dataset, "
            "which has become shorter: take another folder, or remove them"
        )
