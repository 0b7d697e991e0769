"""A fine-tuned backbone in a temporary folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

from prefixembed._fit.fine_tuning import write_backbone
from prefixembed.backbone import release_backbones


class TemporaryBackbone(os.PathLike[str]):
    """A folder of a backbone that exists as long as somebody holds this object."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._path = tempfile.mkdtemp(prefix="prefixembed-")
        weakref.finalize(self, _discard, self._path, os.getpid())
        write_backbone(files, self._path)

    def __fspath__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return repr(self._path)

    def __copy__(self) -> TemporaryBackbone:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TemporaryBackbone:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process uses the folder while it exists, and does not remove it.
        return str, (self._path,)


def _discard(path: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child leaves the folder to its parent
        release_backbones(path)
        shutil.rmtree(path, ignore_errors=True)
