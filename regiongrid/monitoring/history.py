"""What a monitor has measured: named columns, one row a measurement."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.errors import InputError
from regiongrid.files import atomic_path

STEP = "step"


class History:
    """Measurements in the order in which they were made.

    ``history["regions/count"]`` is a column, ``len(history)`` the number of measurements, and iterating gives the names
    of the columns, as for a `regiongrid.regions.RegionTable`. What a measurement did not give is NaN.

    Examples
    --------
    >>> history = History()
    >>> history.append(0, {"regions/count": 12.0})
    >>> history.append(50, {"regions/count": 9.5})
    >>> history["step"].tolist(), history["regions/count"].tolist()
    ([0, 50], [12.0, 9.5])
    """

    def __init__(self) -> None:
        self._steps = array("q")
        self._columns: dict[str, array[float]] = {}

    @classmethod
    def of(cls, columns: Mapping[str, NDArray[Any]]) -> History:
        """The history with these columns, ``step`` among them, as `to_dict` gave them."""
        made = cls()
        made._steps = array("q", columns[STEP].astype(np.int64).tolist())
        made._columns = {
            name: array("d", column.astype(np.float64).tolist()) for name, column in columns.items() if name != STEP
        }
        return made

    def append(self, step: int, record: Mapping[str, float]) -> None:
        """Add a measurement."""
        for name in record:
            if name not in self._columns:
                self._columns[name] = array("d", [np.nan] * len(self._steps))
        self._steps.append(step)
        for name, column in self._columns.items():
            column.append(record.get(name, np.nan))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, ``step`` first."""
        return (STEP, *self._columns)

    @property
    def last_step(self) -> int | None:
        """Number of the last step at which something was measured, None if nothing was yet."""
        return self._steps[-1] if len(self._steps) else None

    def keys(self) -> tuple[str, ...]:
        """Names of the columns, ``step`` first."""
        return self.columns

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> NDArray[np.int64] | NDArray[np.float64]:
        """A copy of a column: ``step`` is int64, all others float64."""
        if name == STEP:
            return np.array(self._steps, np.int64)
        if name not in self._columns:
            raise InputError(f"the history has no column {name!r}; it has {', '.join(self.columns)}")
        return np.array(self._columns[name], np.float64)

    def __repr__(self) -> str:
        if not len(self):
            return "History: no measurement yet"
        span = f"steps {self._steps[0]} to {self._steps[-1]}"
        return f"History: {len(self)} measurements, {span}, {len(self._columns)} columns"

    def last(self) -> dict[str, float]:
        """The last measurement, as `RegionMonitor.measure` returned it.

        Raises
        ------
        InputError
            There is none yet.
        """
        if not len(self):
            raise InputError("nothing has been measured yet")
        return {name: column[-1] for name, column in self._columns.items()}

    def to_dict(self) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
        """The columns by name, as ``pandas.DataFrame`` takes them."""
        return {name: self[name] for name in self.columns}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the measurements to a ``.csv`` file: a line of names, then one line a measurement, with all digits.

        The file appears under its name only when it is complete.

        Raises
        ------
        InputError
            ``path`` has another suffix.
        RegiongridError
            The file cannot be written.
        """
        if Path(path).suffix.lower() != ".csv":
            raise InputError(f"a history is written to a .csv file, got {os.fspath(path)!r}")
        with atomic_path(path) as temporary, temporary.open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(zip(*(map(repr, self[name].tolist()) for name in self.columns)))
