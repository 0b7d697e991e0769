"""Spark in local mode, as a backend of joblib."""

import os
import shutil

import pytest
from backend_checks import (
    CPU,
    check_corpus,
    check_error,
    check_learning,
    check_one_backbone_per_process,
    check_search,
)

from prefixembed import PrefixBank

pytest.importorskip("joblibspark", reason="needs Spark: pip install 'prefixembed[spark]'")
pytestmark = [
    pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java"),
    # Warnings of Spark itself.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(joblibspark|pyspark).*"),
]
BACKEND = {"backend": "spark", "n_jobs": 2}


@pytest.fixture(scope="module", autouse=True)
def local_spark():
    from joblibspark import register_spark
    from pyspark.sql import SparkSession

    # Workers import backend_checks from this folder.
    paths = {"PYTHONPATH": os.path.dirname(__file__), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "127.0.0.1")
    for name, value in paths.items():
        builder = builder.config(f"spark.executorEnv.{name}", value)
    session = builder.getOrCreate()
    register_spark()
    yield
    session.stop()


@pytest.fixture
def bank(tiny, random_prefix):
    return PrefixBank({"a": random_prefix(tiny())}, **CPU)


def test_results_are_those_of_one_process(tiny, bank, tmp_path):
    check_corpus(bank, tmp_path / "out", **BACKEND)
    check_learning(tiny(), **BACKEND)
    check_search(bank, **BACKEND)
    check_one_backbone_per_process(bank, **BACKEND)


def test_errors_of_workers_are_raised(bank, tmp_path):
    # joblibspark 0.6 loses the message of the error on the way. Spark's log has it.
    check_error(bank, tmp_path / "out", "_ExceptionWithTraceback|dataset", **BACKEND)
