"""Scores of the classes of target tasks, by heads that have some."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.metaestimators import available_if

from prefixembed._embed.texts import check_texts
from prefixembed._utils.docstrings import substitute


def _some_head_has(method: str) -> Callable[[Any], bool]:
    def check(many: Any) -> bool:
        heads = getattr(many, "heads_", None)
        if heads is None:
            # None stands for a LogisticRegression, which has all methods.
            given = many.heads if isinstance(many.heads, dict) else {}
            heads = {"": many.head, **given}
        return not heads or any(h is None or hasattr(h, method) for h in heads.values())

    return check


@substitute
class TargetScoresMixin:
    """Methods of heads of target tasks that return an array per target task."""

    heads_: dict[str, Any]
    _check_names: Callable[..., list[str]]
    _encode: Callable[..., dict[str, NDArray[np.float32]]]

    # `targets` holds names, which are not metadata to be routed.
    __metadata_request__predict_proba: ClassVar[dict[str, str]] = {"targets": UNUSED}
    __metadata_request__predict_log_proba: ClassVar[dict[str, str]] = {"targets": UNUSED}
    __metadata_request__decision_function: ClassVar[dict[str, str]] = {"targets": UNUSED}

    @available_if(_some_head_has("predict_proba"))
    def predict_proba(self, X: Any, targets: Iterable[str] | None = None) -> dict[str, Any]:
        """Predict the probability of each class in each target task.

        Parameters
        ----------
        $X
        $target_names

        Returns
        -------
        probabilities : dict of str to ndarray of shape (n_texts, n_classes)
            Probabilities by target task, with classes in the order of ``heads_[name].classes_``.

        Raises
        ------
        ValueError
            If `X` is invalid, there is no such target task, or a head has no ``predict_proba``.
        """
        return self._by_target("predict_proba", X, targets)

    @available_if(_some_head_has("predict_log_proba"))
    def predict_log_proba(self, X: Any, targets: Iterable[str] | None = None) -> dict[str, Any]:
        """Predict the logarithm of the probability of each class in each target task.

        Parameters
        ----------
        $X
        $target_names

        Returns
        -------
        logarithms : dict of str to ndarray of shape (n_texts, n_classes)
            As the heads return them, by target task.

        Raises
        ------
        ValueError
            If `X` is invalid, there is no such target task, or a head has no
            ``predict_log_proba``.
        """
        return self._by_target("predict_log_proba", X, targets)

    @available_if(_some_head_has("decision_function"))
    def decision_function(self, X: Any, targets: Iterable[str] | None = None) -> dict[str, Any]:
        """Compute the score of each class in each target task.

        Parameters
        ----------
        $X
        $target_names

        Returns
        -------
        scores : dict of str to ndarray of shape (n_texts,) or (n_texts, n_classes)
            As the heads return them, by target task.

        Raises
        ------
        ValueError
            If `X` is invalid, there is no such target task, or a head has no
            ``decision_function``.
        """
        return self._by_target("decision_function", X, targets)

    def _by_target(self, method: str, X: Any, targets: Iterable[str] | None) -> dict[str, Any]:
        names = self._check_names(targets)
        if without := [name for name in names if not hasattr(self.heads_[name], method)]:
            raise ValueError(f"heads of {without} have no {method}")
        vectors = self._encode(dict.fromkeys(names, check_texts(X)))
        return {name: getattr(self.heads_[name], method)(vectors[name]) for name in names}
