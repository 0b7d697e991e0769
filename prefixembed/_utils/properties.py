"""Attributes that are computed when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class cached_property(Generic[T]):  # noqa: N801  the name of functools
    """Compute an attribute once per instance, without a lock.

    Before Python 3.12, :class:`functools.cached_property` holds one lock for all instances while it
    computes: loading one backbone would block every other, and a child that is forked meanwhile
    would wait forever.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, _: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, _: type) -> cached_property[T]: ...
    @overload
    def __get__(self, instance: object, _: type) -> T: ...
    def __get__(self, instance: object | None, _: type) -> Any:
        """Return the value, which from now on is an attribute of the instance."""
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.compute(instance)
        return value
