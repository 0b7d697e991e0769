"""Fuzz everything that reads input: files of others, texts, and labels.

``test_fuzz.py`` runs the targets with hypothesis. This script runs them with atheris, guided by
coverage, for any length of time::

    python tests/fuzz.py prefix -max_total_time=3600
    python tests/fuzz.py all -max_total_time=600

Each target takes arbitrary bytes. An error that is not documented is a finding.
"""

import contextlib
import csv
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

# Limit on memory, whatever sizes a file claims.
MEMORY_MB = 2048


class Targets:
    """The targets of fuzzing, which share a folder for their files."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.whole = self.make_prefix()

    @staticmethod
    def make_prefix(seed=0):
        from prefixembed.prefix import Head, Prefix
        from prefixembed.reading import Reading

        rng = np.random.default_rng(seed)
        return Prefix(
            keys_values=rng.standard_normal((1, 2, 1, 2, 2), dtype=np.float32),
            backbone="b",
            fingerprint="f" * 64,
            n_features=2,
            reading=Reading("mean", 64),
            head=Head(
                "classification",
                np.array(["no", "yes"]),
                rng.standard_normal((2, 2), dtype=np.float32),
                np.zeros(2, dtype=np.float32),
            ),
        )

    def seeds(self, target):
        """Return valid inputs of a target."""
        if target in ("prefix", "bank_prefix"):
            return [self.whole.to_bytes()]
        if target == "bank":
            return [self._bank()[0].read_bytes()]
        if target == "cache":
            return [self._cache_file(self.folder / "seed")]
        if target == "checkpoint":
            return [self._checkpoint()[0].read_bytes()]
        if target == "peft":
            return [json.dumps(self._peft_config()).encode()]
        if target == "task":
            return [b'{"text": "a", "label": 1}\n{"text": "b", "text_b": "c", "label": 0}\n']
        if target == "csv":
            return [
                b'text,n\n007,1\n"a, ""b""\nc",NA\n,\n',
                b"\xef\xbb\xbfn,text\r\n1,a\r\n\r\n2,null\r\n",
            ]
        if target == "jsonl":
            return [
                b'{"text": "007", "n": 1}\n{"n": [1.5, {"a": null}], "text": "\\ud83d\\ude00"}\n',
                b'[{"text": "true"}, {"text": "null", "n": {}}]',
            ]
        if target == "parquet":
            return [self._parquet(compression) for compression in ("none", "snappy")]

        if target == "labels":
            rng = np.random.default_rng(0)
            return [rng.bytes(48) for _ in range(40)]
        return ["a text\x00\U0001f600 \u05e9".encode(), b"\xff\xfe", b"[CLS]" * 9]

    def prefix(self, data):
        from prefixembed.prefix import Prefix

        path = self.folder / "p.safetensors"
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            found = Prefix.load(path)
            # Whatever is not refused can be saved and loaded again.
            found.save(path)
            assert Prefix.load(path) == found

    def _bank(self):
        from prefixembed._files.bank_folder import MANIFEST, write_folder

        folder = self.folder / "bank"
        if not folder.exists():
            prefixes = {name: self.make_prefix(k).to_bytes() for k, name in enumerate("ab")}
            write_folder(folder, prefixes, {"combine": "mean"})
        return folder / MANIFEST, sorted(folder.glob("*.safetensors"))[0]

    def bank(self, data):
        self._read_bank(self._bank()[0], data)

    def bank_prefix(self, data):
        self._read_bank(self._bank()[1], data)

    def _read_bank(self, path, data):
        from prefixembed._files.bank_folder import read_folder

        whole = path.read_bytes()
        path.write_bytes(data)
        try:
            with contextlib.suppress(ValueError, FileNotFoundError):
                read_folder(path.parent)
        finally:
            path.write_bytes(whole)

    KEYS = (b"\x00" * 32, b"\x01" * 32)

    def _cache_file(self, path):
        from prefixembed.cache import VectorCache

        for old in self.folder.glob(f"{path.name}*"):
            old.unlink()
        cache = VectorCache(path)
        vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
        cache.put(list(self.KEYS), vectors, np.array([False, True]))
        return path.read_bytes()

    def cache(self, data):
        from prefixembed.cache import VectorCache

        path = self.folder / "c.db"
        for old in self.folder.glob("c.db*"):
            old.unlink()
        path.write_bytes(data)
        cache = VectorCache(path)
        known = np.arange(8, dtype=np.float32).reshape(2, 4)
        for row, expected in zip(cache.get(list(self.KEYS)), known, strict=True):
            assert row is None or np.array_equal(row[0], expected)
        cache.put([self.KEYS[0]], known[:1], np.array([False]))
        (row,) = cache.get([self.KEYS[0]])
        assert row is None or np.array_equal(row[0], known[0])
        cache.stats()
        cache.clear()

    def _checkpoint(self):
        import torch

        from prefixembed._fit.checkpoints import Checkpoints, State

        checkpoints = Checkpoints(self.folder, "run")
        if checkpoints.load() is None:
            checkpoints.save(1, State({"a": 1}, {"t": torch.ones(2)}))
            checkpoints.save(2, State({"a": 2}, {"t": torch.ones(2)}))
        return max((self.folder / "run").glob("*.safetensors")), checkpoints

    def checkpoint(self, data):
        path, checkpoints = self._checkpoint()
        whole = path.read_bytes()
        path.write_bytes(data)
        try:
            assert checkpoints.load().facts == {"a": 2 if data == whole else 1}
        finally:
            path.write_bytes(whole)

    @staticmethod
    def _peft_config():
        return {
            "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2, "prefix_projection": False,
            "base_model_name_or_path": "nowhere", "token_dim": 2, "num_layers": 1,
            "num_attention_heads": 1, "encoder_hidden_size": 2, "task_type": "FEATURE_EXTRACTION",
        }  # fmt: skip

    def peft(self, data):
        from prefixembed.interop import load_peft

        folder = self.folder / "peft"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_bytes(data)
        self.whole.save(folder / "adapter_model.safetensors")
        with contextlib.suppress(ValueError, OSError):
            load_peft(folder, "nowhere/at-all")

    def task(self, data):
        from prefixembed.tasks import fetch_task

        (self.folder / "mr.test.jsonl").write_bytes(data)
        with contextlib.suppress(ValueError):
            split = fetch_task("mr", "test", data_dir=self.folder)
            assert len(split.X) == len(split.y)

    def csv(self, data):
        path = self.folder / "corpus.csv"
        path.write_bytes(data)
        found, error = self._read_corpus(path)
        try:
            lines = io.StringIO(data.decode("utf-8-sig"), newline="")
            header, *rows = [row for row in csv.reader(lines, strict=True) if row]
            assert all(len(row) == len(header) == len(set(header)) for row in [header, *rows])
            assert "\0" not in "".join(header)
            expected = [row[header.index("text")] for row in rows]
        except (ValueError, AssertionError, csv.Error):
            expected = None  # unless it has no rows, of which nothing is asked
        assert found == expected or (found == [] and expected is None), (found, expected, error)

    def jsonl(self, data):
        path = self.folder / "corpus.jsonl"
        path.write_bytes(data)
        found, error = self._read_corpus(path)
        try:
            content = data.decode().removeprefix("\ufeff")
            if content.lstrip(" \t\r\n\v\f").startswith("["):
                rows = json.loads(content)
            else:
                rows = [json.loads(line) for line in content.split("\n") if line.strip(" \t\r\v\f")]
            expected = [row["text"] for row in rows]
            assert all(isinstance(text, str) and text.encode() is not None for text in expected)
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
            expected = None
        if expected is not None and found is None:  # for a value that no column holds
            assert "column" in error, error
            assert "['text']" not in error, error
        else:
            assert found == expected, (found, expected, error)

    @staticmethod
    def _parquet(compression):
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        table = pa.table({"text": ["007", "", "a\nb", "null"] * 2, "n": [1, None, 2, 3] * 2})
        pq.write_table(
            table, sink, compression=compression, row_group_size=3, write_page_checksum=True
        )
        return sink.getvalue().to_pybytes()

    def parquet(self, data):
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / "corpus.parquet"
        path.write_bytes(data)
        found, _ = self._read_corpus(path)
        try:
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            expected = table.column("text").to_pylist()
        except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError):
            return  # a damaged footer, of which reading by parts may need less
        assert found in (expected, None), (found, expected)

    @staticmethod
    def _read_corpus(path):
        """Return the texts of a file and None, or None and an error that names the file."""
        from prefixembed.corpus.columns import TextColumns
        from prefixembed.corpus.sources import open_source

        try:
            source = open_source(path, TextColumns(["text"], False))
            return [t for _, rows in source.tables(2) for t in rows["text"].to_pylist()], None
        except ValueError as error:
            message = str(error)
        assert repr(str(path)) in message, message
        return None, message

    def labels(self, data):
        from label_fuzz import check

        check(data)

    def text(self, data):
        from prefixembed import PrefixBank

        if not hasattr(self, "encoder"):
            from conftest import make_backbone

            folder = make_backbone(tempfile.mkdtemp(dir=self.folder), "bert")
            self.encoder = PrefixBank(
                {}, backbone=folder, device="cpu", dtype="float32", cache=None, on_truncate="ignore"
            )
        texts = data.decode("utf-16-le", "surrogatepass" if len(data) % 2 == 0 else "replace")
        vectors = self.encoder.transform([texts, "another", texts[::-1]])
        assert np.isfinite(vectors).all()


# The module that each target tests.
MODULES = {
    "prefix": "prefixembed.prefix",
    "bank": "prefixembed._files.bank_folder",
    "bank_prefix": "prefixembed._files.bank_folder",
    "cache": "prefixembed.cache",
    "task": "prefixembed.tasks",
    "checkpoint": "prefixembed._fit.checkpoints",
    "peft": "prefixembed.interop",
    "csv": "prefixembed.corpus.files",
    "jsonl": "prefixembed.corpus.files",
    "parquet": "prefixembed.corpus.files",
    "text": "prefixembed.bank",
    "labels": "prefixembed._fit.examples",
}


def main():
    """Fuzz one target, or each of them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    name, *options = sys.argv[1:]
    if name == "all":
        for one in MODULES:
            subprocess.run([sys.executable, __file__, one, *options], check=True)
        return
    import atheris

    with atheris.instrument_imports(include=["prefixembed"]):
        importlib.import_module(MODULES[name])
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        targets = Targets(folder)
        for k, seed in enumerate(targets.seeds(name)):
            (corpus / str(k)).write_bytes(seed)
        limits = [f"-rss_limit_mb={MEMORY_MB}", "-timeout=30"]
        atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], getattr(targets, name))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
