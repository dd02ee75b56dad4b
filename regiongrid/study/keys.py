"""Configurations of flat keys that check their values: in Python a frozen dataclass, on disk a TOML file.

>>> @dataclass(frozen=True)
... class Walk(FlatConfig):
...     steps: int = whole(10, 1)
...     length: float = positive(0.5)
>>> print(Walk(length=2).to_toml(), end="")
steps = 10
length = 2.0
>>> Walk(steps=0)
Traceback (most recent call last):
    ...
regiongrid.errors.InputError: steps is 0; it must be a whole number from 1 on
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from regiongrid.errors import InputError
from regiongrid.files import existing_file

Check = Callable[[Any], bool]
_MOST = (1 << 63) - 1  # what TOML and generators of random numbers can take


@dataclass(frozen=True)
class _Rule:
    """What a key may be."""

    wanted: str
    holds: Check


def one_of(default: str, choices: tuple[str, ...]) -> Any:
    """A key that is one of a few texts."""
    return _key(default, f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def one_of_or(default: str, choices: tuple[str, ...], other: str, is_other: Callable[[str], bool]) -> Any:
    """A key that is one of a few texts, or a text of another kind, which ``other`` names."""
    wanted = f"one of {', '.join(choices)}, or {other}"

    def holds(value: Any) -> bool:
        # What cannot be printed cannot stand in a TOML file either.
        return isinstance(value, str) and (value in choices or (value.isprintable() and is_other(value)))

    return _key(default, wanted, holds)


def whole(default: int, least: int, most: int = _MOST) -> Any:
    """A key that is a whole number from ``least`` to ``most``."""
    wanted = f"a whole number from {least} " + ("on" if most == _MOST else f"to {most:,}")
    return _key(default, wanted, lambda value: _is_int(value) and least <= value <= most)


def real(default: float, wanted: str, holds: Check) -> Any:
    """A key that is a finite number for which ``holds``; ``wanted`` says so in words."""
    return _key(default, wanted, lambda value: _is_real(value) and holds(value))


def positive(default: float) -> Any:
    """A key that is a finite number above 0."""
    return real(default, "a number above 0", lambda value: value > 0)


def not_negative(default: float) -> Any:
    """A key that is a finite number from 0 on."""
    return real(default, "a number from 0 on", lambda value: value >= 0)


def flag(default: bool) -> Any:
    """A key that is true or false."""
    return _key(default, "true or false", lambda value: isinstance(value, bool))


def _key(default: Any, wanted: str, holds: Check) -> Any:
    return field(default=default, metadata={"rule": _Rule(wanted, holds)})


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    if not _is_int(value) and not isinstance(value, float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


@dataclass(frozen=True)
class FlatConfig:
    """What all configurations can do. A subclass is a frozen dataclass whose fields are declared by `one_of`, `whole`,
    `real` and the like, and whose ``__post_init__``, if it has one, calls this one first.

    Raises
    ------
    InputError
        A value that its key cannot have.
    """

    def __post_init__(self) -> None:
        for key in fields(self):
            rule: _Rule = key.metadata["rule"]
            value = getattr(self, key.name)
            if not rule.holds(value):
                raise InputError(f"{key.name} is {value!r}; it must be {rule.wanted}")
            if key.type in (float, "float"):  # so that 1 and 1.0 are one configuration
                object.__setattr__(self, key.name, float(value))

    @classmethod
    def check_keys(cls, values: Mapping[str, Any]) -> None:
        """Raise `InputError` if a key is none of the configuration's; the values are not looked at."""
        known = [key.name for key in fields(cls)]
        for key, value in values.items():
            if key not in known:
                raise InputError(f"unknown key {key} (= {value!r}); the keys are {', '.join(known)}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """The configuration with these keys, and the defaults for all others.

        Raises
        ------
        InputError
            A key that does not exist, or a value that its key cannot have.
        """
        cls.check_keys(values)
        return cls(**values)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """The configuration in a TOML file.

        Raises
        ------
        InputError
            No such file, no TOML, a key that does not exist, or a value that its key cannot have.
        """
        values = read_toml(path)
        try:
            return cls.from_mapping(values)
        except InputError as error:
            raise InputError(f"configuration {path}: {error}") from error

    def to_toml(self) -> str:
        """All keys as TOML text."""
        # JSON writes flags, numbers and texts as TOML does, if it leaves characters as they are.
        return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in asdict(self).items())

    def differences(self, other: Self) -> list[str]:
        """One text for each key that differs: ``lr is 0.1 here and 0.2 there``."""
        pairs = ((key.name, getattr(self, key.name), getattr(other, key.name)) for key in fields(self))
        return [f"{name} is {own!r} here and {its!r} there" for name, own, its in pairs if own != its]

    def replace(self, **changes: Any) -> Self:
        """The configuration with some keys changed."""
        self.check_keys(changes)
        return replace(self, **changes)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of a TOML file, unchecked.

    Raises
    ------
    InputError
        The file cannot be read, or is not TOML.
    """
    file = existing_file(path, "configuration")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"configuration {file} is not TOML: {error}") from error
