"""The same work on Spark in local mode, through joblib."""

import os
import shutil

import pytest
from engines import (
    CPU,
    check_corpus,
    check_error,
    check_learning,
    check_one_backbone_a_process,
    check_search,
)

from prefixembed import PrefixBank

pytest.importorskip("joblibspark", reason="needs Spark: pip install 'prefixembed[spark]'")
pytestmark = [
    pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java"),
    # Of Spark's own.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(joblibspark|pyspark).*"),
]
BACKEND = {"backend": "spark", "n_jobs": 2}


@pytest.fixture(scope="module", autouse=True)
def local_spark():
    from joblibspark import register_spark
    from pyspark.sql import SparkSession

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


def test_spark_gives_what_one_process_gives(tiny, bank, tmp_path):
    check_corpus(bank, tmp_path / "out", **BACKEND)
    check_learning(tiny(), **BACKEND)
    check_search(bank, **BACKEND)
    check_one_backbone_a_process(bank, **BACKEND)


def test_an_error_at_spark_comes_back(bank, tmp_path):
    # joblibspark 0.6 loses what it says on the way; Spark's log has it.
    check_error(bank, tmp_path / "out", "_ExceptionWithTraceback|dataset", **BACKEND)
