"""Upload to the Hub and download from it, for everything that has a folder."""

from __future__ import annotations

import inspect
import os
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from prefixembed._files.cards import is_own_card
from prefixembed._utils.warnings import warn
from prefixembed._version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self

_CARD = "README.md"


class HubMixin:
    """Add ``push_to_hub`` and ``from_pretrained`` to a class that has ``save`` and ``load``.

    They take the path `_SAVED_AS` in a folder. `_MAIN_FILE` is the file there that is read first,
    ``_other_files`` returns the names of the files that its content names, and raises a ValueError
    if this library has not written it. ``_card(repo_id)`` returns the model card as Markdown.
    """

    _MAIN_FILE: ClassVar[str]
    _SAVED_AS: ClassVar[str]

    if TYPE_CHECKING:

        def save(self, *args: Any, **params: Any) -> None: ...
        def _card(self, repo_id: str) -> str: ...
        @staticmethod
        def _other_files(content: bytes) -> list[str]: ...
        @classmethod
        def load(cls, *args: Any, **params: Any) -> Self: ...

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the files and a model card to the Hub as one commit.

        Files of the repository that this library has not written are left alone. If an earlier
        upload left files that are no longer needed, they are deleted; old commits keep them. A
        model card that somebody else wrote, or edited, stays as it is, with a warning.

        Parameters
        ----------
        repo_id : str
            Repository on the Hub, as ``"user/name"``. It is created if missing.
        private : bool, default=None
            Whether a repository that is created is private. None for the account's default.
        token : str or bool, default=None
            Access token; see `huggingface_hub`. None for the one that is stored on the machine.
        revision : str, default=None
            Branch to commit to. None for the main branch.
        commit_message : str, default=None
            Message of the commit. None for one that names the library.

        Returns
        -------
        url : str
            URL of the commit.

        Raises
        ------
        ValueError
            If a parameter is invalid, or if the repository has a file of another origin under the
            name of one of these files.

        Warns
        -----
        UserWarning
            If the repository has a model card of another origin.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        # Before the repository is created, so that invalid input leaves no empty one.
        files = self._files_to_upload(repo_id)
        api = HfApi(token=token, library_name="prefixembed", library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        before = api.model_info(repo_id, revision=revision)
        there = {file.rfilename for file in before.siblings or []}

        def read(path: str) -> bytes:
            return Path(api.hf_hub_download(repo_id, path, revision=before.sha)).read_bytes()

        old: list[str] = []
        if self._MAIN_FILE in there:
            try:
                old = self._other_files(read(self._MAIN_FILE))
            except ValueError as error:
                raise ValueError(
                    f"repository {repo_id!r} has a {self._MAIN_FILE} that prefixembed has not "
                    f"written, or that is damaged: {error}. Delete it, or push to another one"
                ) from error
        if _CARD in there and not is_own_card(read(_CARD).decode("utf-8", "replace")):
            warn(
                f"the {_CARD} of repository {repo_id!r} was written or edited by somebody else and "
                "is left alone; delete it, and the next upload writes one"
            )
            del files[_CARD]
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(path, content) for path, content in files.items()),
                *(CommitOperationDelete(path) for path in old if path in there - files.keys()),
            ],
            commit_message=commit_message or f"Upload with prefixembed {__version__}",
            revision=revision,
            parent_commit=before.sha,  # refused if somebody else has pushed in the meantime
        )
        return str(commit.commit_url)

    def _files_to_upload(self, repo_id: str) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / self._SAVED_AS)
            paths = [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
            files = {path.name: path.read_bytes() for path in sorted(paths)}
        return {**files, _CARD: self._card(repo_id).encode()}

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        revision: str | None = None,
        *,
        token: str | bool | None = None,
        **params: Any,
    ) -> Self:
        """Load from the Hub or from a folder; nothing that is loaded is executed.

        Of a repository, the files of the prefix or the bank alone are fetched.

        Parameters
        ----------
        name : str or path-like
            Repository on the Hub, or a folder with the same files.
        revision : str, default=None
            Branch, tag or commit of the repository. None for the main branch.
        token : str or bool, default=None
            Access token; see `huggingface_hub`. None for the one that is stored on the machine.
        **params : dict
            Parameters of a bank that replace the saved ones, such as ``device``. A prefix has
            none.

        Returns
        -------
        loaded : object
            Equal to what was pushed.

        Raises
        ------
        OSError
            If `name` is not a folder and cannot be fetched, or if files are missing.
        ValueError
            If a file is damaged or has another format version, or if `revision` is given for a
            folder.
        TypeError
            If a parameter does not exist.

        Examples
        --------
        >>> bank = PrefixBank.from_pretrained("user/name")  # doctest: +SKIP
        """
        try:
            inspect.signature(cls.load).bind(Path(), **params)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.from_pretrained() {error}") from None
        if os.path.isdir(name):
            if revision is not None:
                raise ValueError(f"revision is for the Hub, but {os.fspath(name)!r} is a folder")
            return cls.load(Path(name) / cls._SAVED_AS, **params)
        fetch = partial(_fetch, os.fspath(name), token)
        folder = fetch(revision, [cls._MAIN_FILE])
        if not (folder / cls._MAIN_FILE).is_file():
            raise FileNotFoundError(f"repository {os.fspath(name)!r} has no {cls._MAIN_FILE}")
        # The folder is named after the commit. Loading says what is wrong with a damaged file.
        with suppress(ValueError):
            if others := cls._other_files((folder / cls._MAIN_FILE).read_bytes()):
                fetch(folder.name, others)
        return cls.load(folder / cls._SAVED_AS, **params)


def _fetch(name: str, token: str | bool | None, revision: str | None, files: list[str]) -> Path:
    """Download some files of a repository, and return the folder of the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                name, revision=revision, token=token, allow_patterns=files,
                library_name="prefixembed", library_version=__version__,
            )
        )  # fmt: skip
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise OSError(
            f"{name!r} is not a folder and could not be fetched from the Hub: {error}"
        ) from error
