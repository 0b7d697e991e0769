"""Upload to the Hub and download from it, for everything that has a folder."""

from __future__ import annotations

import inspect
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefixembed._version import __version__

if TYPE_CHECKING:
    from typing_extensions import Self


class HubMixin:
    """Add ``push_to_hub`` and ``from_pretrained`` to a class that has three hooks.

    ``_write_folder(folder)`` writes the object, ``_read_folder(folder, **params)`` reads it, and
    ``_card(repo_id)`` returns the model card as Markdown.
    """

    if TYPE_CHECKING:

        def _write_folder(self, folder: Path) -> None: ...
        def _card(self, repo_id: str) -> str: ...
        @classmethod
        def _read_folder(cls, folder: Path, *args: Any, **params: Any) -> Self: ...

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
            If a parameter is invalid.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            # Before the repository is created, so that invalid input leaves no empty one.
            self._write_folder(Path(folder))
            (Path(folder) / "README.md").write_text(self._card(repo_id), encoding="utf-8")
            api = HfApi(token=token, library_name="prefixembed", library_version=__version__)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message or f"Upload with prefixembed {__version__}",
                # Deletes prefixes that are no longer there; those that are uploaded stay.
                delete_patterns="*.safetensors",
                ignore_patterns=".*",
            )
        return str(commit.commit_url)

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
            inspect.signature(cls._read_folder).bind(Path(), **params)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.from_pretrained() {error}") from None
        return cls._read_folder(_fetch_folder(name, revision, token), **params)


def _fetch_folder(
    name: str | os.PathLike[str], revision: str | None, token: str | bool | None
) -> Path:
    """Return a folder as it is, or download the data files of a repository."""
    if os.path.isdir(name):
        if revision is not None:
            raise ValueError(f"revision is for the Hub, but {os.fspath(name)!r} is a folder")
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                os.fspath(name), revision=revision, token=token,
                allow_patterns=["*.safetensors", "*.json"],  # data only, never code
                library_name="prefixembed", library_version=__version__,
            )
        )  # fmt: skip
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise OSError(
            f"{os.fspath(name)!r} is not a folder and could not be fetched from the Hub: {error}"
        ) from error
