"""Constraints on the parameters of estimators and public functions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import numpy as np
from sklearn.utils._param_validation import HasMethods, Interval, validate_params

Function = TypeVar("Function", bound=Callable[..., Any])

PATH: list[Any] = [str, os.PathLike]


class Count(Interval):
    """Accept an integer that is at least `minimum`; booleans are rejected.

    Parameters
    ----------
    minimum : int
        Smallest accepted value.
    """

    def __init__(self, minimum: int) -> None:
        super().__init__(Integral, minimum, None, closed="left")

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether a value is accepted."""
        return not isinstance(val, bool) and super().is_satisfied_by(val)


class Number(Interval):
    """Accept a real number in an interval that a float can hold.

    Parameters
    ----------
    low, high : float or None
        Limits; None for none.
    closed : {"left", "right", "both", "neither"}
        Which limits belong to the interval.
    """

    def __init__(self, low: float | None, high: float | None, *, closed: str) -> None:
        super().__init__(Real, low, high, closed=closed)

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether a value is accepted."""
        try:
            return super().is_satisfied_by(val) and not math.isnan(float(val))
        except OverflowError:  # a large int
            return False


class Implements(HasMethods):
    """Accept an object that has some methods; a class is no such object."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether a value is accepted."""
        return not isinstance(val, type) and super().is_satisfied_by(val)


def checked(**constraints: Any) -> Callable[[Function], Function]:
    """Check the parameters of a function when it is called.

    Parameters
    ----------
    **constraints : list or "no_validation"
        Constraints by parameter, in the form of ``_parameter_constraints`` of estimators.

    Returns
    -------
    decorator : callable
        Decorator. The decorated function raises scikit-learn's ``InvalidParameterError``, a
        subclass of ValueError and TypeError, which names the parameter and its value.
    """
    decorator = validate_params(constraints, prefer_skip_nested_validation=True)
    return cast("Callable[[Function], Function]", decorator)


def check_cache_name(cache: Any) -> None:
    """Check that a cache is not named "none": it would become a file of that name."""
    if isinstance(cache, str) and cache.lower() == "none":
        raise ValueError(
            f"cache must be 'memory', the path of a file, a VectorCache or None, got {cache!r}; "
            "pass None, without quotes, for no cache"
        )


def to_json(value: Any) -> Any:
    """Return the value of a parameter as JSON types; numbers may be those of numpy."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {key: to_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(one) for one in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
