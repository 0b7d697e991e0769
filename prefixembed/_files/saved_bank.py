"""How a bank goes elsewhere: as a folder, to the Hub, as a model of sentence-transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefixembed._files.bank_folder import BankFiles, read_bank, write_bank
from prefixembed._files.hub import fetch_folder, model_card, push
from prefixembed.prefix import Prefix

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from typing_extensions import Self

# Parameters that decide vectors, and go into a file.
_SAVED = (
    "active", "combine", "weights", "backbone", "revision", "pooling", "pooled_layers", "pairs",
    "prompt", "max_length", "on_truncate", "output", "output_dtype",
)  # fmt: skip


class SavedBank:
    """What a bank has for other places: written and read whole, and checked."""

    if TYPE_CHECKING:
        active: Sequence[str] | None
        combine: str
        weights: float | dict[str, float] | None

        def __init__(self, prefixes: Any, **params: Any) -> None: ...
        def _validate_params(self) -> None: ...
        def _check(self) -> dict[str, Prefix]: ...
        def _active_names(self, known: Mapping[str, Prefix]) -> list[str]: ...
        def _backbone_name(self, known: Mapping[str, Prefix]) -> tuple[str, str | None]: ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the bank as a folder: a file a prefix, and ``bank.json``.

        What decides vectors is written: prefixes, and how they are used. Where the bank runs and
        what it keeps (`device`, `dtype`, `cache`, `batch_tokens`, `verbose`) is not.

        Parameters
        ----------
        folder : str or path-like
            Made where there is none. A bank that is there is replaced; a kill at any moment leaves
            the old one or the new one. Other files are left alone.

        Raises
        ------
        ValueError
            If a parameter is wrong, or prefixes do not fit each other.

        Examples
        --------
        >>> bank.save("bank")  # doctest: +SKIP
        >>> bank = PrefixBank.load("bank", device="cpu")  # doctest: +SKIP
        """
        self._validate_params()
        known = self._check()
        parameters = {name: getattr(self, name) for name in _SAVED}
        # As JSON knows them: numbers may be numpy's.
        for name, kind in (("active", list), ("max_length", int), ("pooled_layers", int)):
            parameters[name] = None if parameters[name] is None else kind(parameters[name])
        if isinstance(self.weights, dict):
            parameters["weights"] = {name: float(value) for name, value in self.weights.items()}
        elif self.weights is not None:
            parameters["weights"] = float(self.weights)
        write_bank(folder, BankFiles(known, parameters))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], **params: Any) -> Self:
        """Read a bank that :meth:`save` wrote; nothing in it is executed.

        Parameters
        ----------
        folder : str or path-like
            Where it is.
        **params : dict
            Parameters to set beside or instead of those that were saved, such as ``device``, or
            ``backbone`` where it lies elsewhere now.

        Returns
        -------
        bank : PrefixBank
            With prefixes equal to those that were saved.

        Raises
        ------
        FileNotFoundError
            If there is no bank, or the file of a prefix is missing.
        ValueError
            If a file is damaged or comes from another version, or parameters are wrong.
        """
        files = read_bank(folder)
        if unknown := files.parameters.keys() - set(_SAVED):
            raise ValueError(f"bank in {os.fspath(folder)!r} has unknown {sorted(unknown)}")
        bank = cls(dict(files.prefixes), **{**files.parameters, **params})
        bank._validate_params()
        bank._check()
        return bank

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the bank and a model card to the Hub, as one commit.

        Parameters
        ----------
        repo_id : str
            ``"user/name"`` on the Hub.
        private : bool, default=None
            Whether a repository that is made is private. None for the account's default.
        token : str or bool, default=None
            As huggingface_hub takes it. None for the one that was logged in with.
        revision : str, default=None
            Branch. None for the main one.
        commit_message : str, default=None
            None for one that names the library.

        Returns
        -------
        url : str
            Of the commit.

        Raises
        ------
        ValueError
            If a parameter is wrong, or prefixes do not fit each other.
        """
        self._validate_params()
        known = self._check()
        names = ", ".join(self._active_names(known)) or "none"
        facts = {name: prefix.facts() for name, prefix in known.items()}
        usage = (
            f"from prefixembed import PrefixBank\n\n"
            f"bank = PrefixBank.from_pretrained({repo_id!r})\n"
            f'vectors = bank.transform(["a text"])'
        )
        how = f"Combined by `{self.combine}`; active: {names}."
        card = model_card(repo_id, facts, self._backbone_name(known)[0], usage, how)
        return push(
            repo_id, self.save, card, private=private, token=token, revision=revision,
            commit_message=commit_message,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        revision: str | None = None,
        *,
        token: str | bool | None = None,
        **params: Any,
    ) -> Self:
        """Read a bank from the Hub or from a folder; nothing in it is executed.

        Parameters
        ----------
        name : str or path-like
            Repository on the Hub, or a folder that :meth:`save` wrote.
        revision : str, default=None
            Branch, tag or commit of the repository.
        token : str or bool, default=None
            As huggingface_hub takes it.
        **params : dict
            As :meth:`load` takes them. The backbone's own revision goes by what was saved.

        Returns
        -------
        bank : PrefixBank
            With prefixes equal to those that were saved.

        Raises
        ------
        OSError
            If it is no folder and cannot be fetched, or there is no bank in it.
        ValueError
            As :meth:`load`; or if a revision is asked for of a folder.

        Examples
        --------
        >>> bank = PrefixBank.from_pretrained("user/name")  # doctest: +SKIP
        """
        return cls.load(fetch_folder(name, revision, token), **params)

    def to_sentence_transformer(self, **params: Any) -> SentenceTransformer:
        """Give a model of sentence-transformers with the bank's vectors.

        Whatever takes such a model, a retriever or a vector store, takes the bank like that.

        Parameters
        ----------
        **params : dict
            Of ``SentenceTransformer``, such as ``prompts`` or ``similarity_fn_name``.

        Returns
        -------
        model : sentence_transformers.SentenceTransformer
            On the bank's device and in its dtype, which ``model.to`` changes. It holds a clone of
            the bank: what is done to the bank later has no effect on it. Vectors are those of
            :meth:`transform`, not scaled to length one. The cache has no part in it.

        Raises
        ------
        ImportError
            If sentence-transformers is not installed.
        ValueError
            If a parameter of the bank is wrong, or it gives vectors of words or in fewer bits, or
            reads long texts in windows.

        Notes
        -----
        ``model.save_pretrained`` writes prefixes, parameters and the name of the backbone; its
        folder is one of :meth:`save` too. ``SentenceTransformer(folder, trust_remote_code=True)``
        reads it: that library asks so for every class that is not its own. Without that,
        ``PrefixBank.load(folder).to_sentence_transformer()`` does.

        Backbone and prefixes are frozen: the model cannot be trained.

        Examples
        --------
        >>> from prefixembed import PrefixBank
        >>> from prefixembed.tasks import demo_backbone
        >>> model = PrefixBank({}, backbone=demo_backbone()).to_sentence_transformer()
        >>> model.encode(["a fine film", "a dud"]).shape
        (2, 384)
        """
        try:
            from sentence_transformers import SentenceTransformer

            from prefixembed.interop.sentence_transformers import PrefixModule
        except ImportError as error:
            raise ImportError(
                "to_sentence_transformer needs sentence-transformers 6 or later: "
                "pip install 'prefixembed[sentence-transformers]'"
            ) from error
        self._validate_params()
        self._check()
        module = PrefixModule(self)  # type: ignore[arg-type]  # which is a PrefixBank
        return SentenceTransformer(
            modules=[module], **{"device": str(module.where.device), **params}
        )
