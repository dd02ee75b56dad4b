"""Checks of arguments that many functions take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from regiongrid.errors import InputError

_MOST = (1 << 64) - 1  # what generators of random numbers and tensors can take


def check_whole(name: str, value: Any, least: int, most: float | None = None, *, of: str = "") -> None:
    """Raise `InputError` unless ``value`` is a whole number from ``least`` on, up to ``most`` if given.

    Without ``most`` it is at most 2^64 - 1, with ``math.inf`` as large as it likes. ``of`` is what it is a number of.

    >>> check_whole("draws", 0, 1)
    Traceback (most recent call last):
    regiongrid.errors.InputError: draws is 0; it must be a whole number from 1 on
    >>> check_whole("res", 1.5, 1, 32768, of="pixels")
    Traceback (most recent call last):
    regiongrid.errors.InputError: res is 1.5; it must be a whole number of pixels from 1 to 32768
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and least <= value <= (_MOST if most is None else most)):
        unit = f" of {of}" if of else ""
        upper = " on" if most is None or most == math.inf else f" to {most}"
        raise InputError(f"{name} is {value!r}; it must be a whole number{unit} from {least}{upper}")
