"""Attributes of other people's objects, replaced for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

_INHERITED = object()


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object, class or module another attribute of this name, for a while.

    Raises: AttributeError if it has none of this name: the library has changed.
    """
    getattr(owner, name)
    before = vars(owner).get(name, _INHERITED)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _INHERITED:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
