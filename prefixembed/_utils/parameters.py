"""Parameters of public functions, checked as those of estimators are."""

from __future__ import annotations

import os
from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeVar, cast

from sklearn.utils._param_validation import Interval, validate_params

Function = TypeVar("Function", bound=Callable[..., Any])

PATH: list[Any] = [str, os.PathLike]


class Count(Interval):
    """A whole number of at least so many; True and False are none.

    Parameters
    ----------
    least : int
        The smallest that is allowed.
    """

    def __init__(self, least: int) -> None:
        super().__init__(Integral, least, None, closed="left")

    def is_satisfied_by(self, val: Any) -> bool:
        """Tell whether a value is one."""
        return not isinstance(val, bool) and super().is_satisfied_by(val)


def checked(**constraints: Any) -> Callable[[Function], Function]:
    """Have a function refuse wrong parameters, with their name and value.

    Parameters
    ----------
    **constraints : list or "no_validation"
        Of each parameter, in the form that ``_parameter_constraints`` have.

    Returns
    -------
    decorator : callable
        The function that it gives raises scikit-learn's ``InvalidParameterError``, which is a
        ValueError and a TypeError.
    """
    decorator = validate_params(constraints, prefer_skip_nested_validation=True)
    return cast("Callable[[Function], Function]", decorator)
