"""What a bug report needs to know about a machine."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

# By the names that pip knows them by.
PACKAGES = (
    "numpy", "scipy", "scikit-learn", "torch", "transformers", "tokenizers", "safetensors",
    "huggingface-hub", "datasets", "pyarrow", "joblib", "sentence-transformers", "peft", "mteb",
)  # fmt: skip


def show_versions() -> None:
    """Print the versions and devices that a bug report needs.

    The packages are those that the library uses or works with. Only torch is imported, to ask it
    for threads and devices.

    .. versionadded:: 0.1

    Examples
    --------
    >>> from prefixembed import show_versions
    >>> show_versions()
    System
      python: 3...
      platform: ...
    Packages
      prefixembed: ...
      numpy: ...
      ...
    Devices
      ...
    """
    sections = {"System": _system(), "Packages": _packages(), "Devices": _devices()}
    for title, facts in sections.items():
        print(title)
        for name, fact in facts.items():
            print(f"  {name}: {fact}")


def _system() -> dict[str, str]:
    return {"python": sys.version.replace("\n", " "), "platform": platform.platform()}


def _packages() -> dict[str, str]:
    # Not from metadata, which an editable install does not keep up to date.
    own = sys.modules[__name__.partition(".")[0]]
    return {"prefixembed": own.__version__, **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    try:
        import torch
    except Exception as error:  # that torch cannot be imported may be what is reported
        return {"torch import": repr(error)}
    facts = {
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "CPU threads": str(torch.get_num_threads()),
        "CUDA": torch.version.cuda or "not in this build of torch",
    }
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = (
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    return {**facts, "MPS": "yes" if torch.backends.mps.is_available() else "no"}
