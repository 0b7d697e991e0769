"""Files that are replaced as a whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


def write_atomically(target: Path, write: Callable[[str], Any]) -> None:
    """Write a file so that a kill or an error leaves the old one as it was.

    `write` is called with the path of a temporary file, which it must fill. If `target` is a
    symbolic link, the link stays and what it points to is written, whether that exists or not.
    """
    # The temporary file lies beside the file itself, since a link may lead to another file system.
    target = follow(target)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        # mkstemp creates files that only their owner can read; a saved file follows the umask.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def file_lock(path: Path, timeout: float = -1) -> FileLock:
    """Return the lock of a file that is created for it; raise OSError if it cannot be created.

    FileLock would wait for it: to FileLock, a folder that holds no new files, such as one of
    ``/proc``, looks like one that another process is changing.
    """
    if not path.exists():
        path.touch()
    return FileLock(path, timeout=timeout)


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder and its parents if they are missing, behind symbolic links too; return it."""
    target = follow(folder)
    target.mkdir(parents=True, exist_ok=True)
    return target


def follow(path: str | os.PathLike[str]) -> Path:
    """Return the path behind symbolic links, which need not exist."""
    target = os.path.realpath(path)
    if os.path.islink(target):  # what realpath returns if links lead in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return Path(target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
