"""A maximum as rounds of comparisons of two: each round splits by where the second of a pair is strictly larger.

Entries of a window stand in their own order, so that of equal ones the first wins, as in `Maximum`. The lines of an
early round also run where neither of the two wins in the end; those are dissolved when the last round is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regiongrid.network.program import Maximum
from regiongrid.subdivision.mesh import Functions
from regiongrid.subdivision.rows import Bound, Rows


class Tournament:
    """The schedule of a `Maximum`.

    Slot s of round r holds the winner of slots 2 s and 2 s + 1 of the round before; slot s of round 0 is entry s of the
    window, the missing ones last. Decision ``unit * pairs + s`` of a round is on where slot 2 s + 1 beats slot 2 s.
    """

    def __init__(self, breakpoint: Maximum) -> None:
        self.breakpoint = breakpoint
        windows = breakpoint.windows
        self.order = np.argsort(windows < 0, axis=1, kind="stable")  # slot of round 0 -> position in the window
        self.entries = np.take_along_axis(windows, self.order, axis=1)  # [units, k]
        self.slots = [windows.shape[1]]
        while self.slots[-1] > 1:
            self.slots.append((self.slots[-1] + 1) // 2)
        missing = self.entries < 0
        self.missing = [missing]  # slots without any entry, round by round
        for slots in self.slots[:-1]:
            missing = self.missing[-1][:, 0:slots:2]
            self.missing.append(missing)

    @property
    def rounds(self) -> int:
        return len(self.slots) - 1

    def pairs(self, round_: int) -> int:
        return int(self.slots[round_]) // 2

    def seat(self, rows: Rows) -> Rows:
        """The entries of all windows, slot by slot, [V, units * k]; missing ones are zero."""
        entries = self.entries.reshape(-1)
        data = self.breakpoint.sign * rows.data[:, np.maximum(entries, 0)]
        data[:, entries < 0] = 0.0
        bound = rows.bounds()
        shared = float(np.bincount(entries[entries >= 0]).max()) ** 0.5  # an entry may be in several windows
        gain, offset = bound.gain[np.maximum(entries, 0)], bound.offset[np.maximum(entries, 0)]
        fixed = rows.exact_entries()
        if fixed is not None:
            fixed = fixed[:, np.maximum(entries, 0)] | (entries < 0)
        return Rows(data, shared * rows.error, Bound(gain, offset, bound.scale, bound.rounding), fixed=fixed)

    def functions(self, round_: int, slots: Rows) -> Functions:
        """Where the second of every pair is larger: differences of neighbouring slots."""
        units, count, pairs = len(self.entries), self.slots[round_], self.pairs(round_)
        seats = slots.data.reshape(-1, units, count)
        one, two = seats[..., 0 : 2 * pairs : 2], seats[..., 1 : 2 * pairs : 2]
        values = (two - one).reshape(len(seats), -1)
        bound = slots.bounds()
        gain, offset = (
            a.reshape(units, count)[:, 0 : 2 * pairs : 2] + a.reshape(units, count)[:, 1 : 2 * pairs : 2]
            for a in (bound.gain, bound.offset)
        )
        absent = self.missing[round_][:, 1 : 2 * pairs : 2]
        gain, offset = (np.where(absent, 0.0, a).reshape(-1) for a in (gain, offset))
        values[:, absent.reshape(-1)] = -1.0  # nobody there: never on
        column = np.arange(units * pairs)
        nothing = np.zeros(column.size)
        zero = None
        if slots.fixed is not None:
            fixed = slots.fixed.reshape(-1, units, count)
            zero = (values == 0) & (fixed[..., 0 : 2 * pairs : 2] & fixed[..., 1 : 2 * pairs : 2]).reshape(values.shape)
        keys = np.zeros(column.size, np.uint64)  # the winner has one, not the comparisons
        return Functions(values, column, nothing, gain, offset, bound.scale, bound.rounding, keys, zero)

    def play(self, round_: int, slots: Rows) -> Rows:
        """The winners of a round, [V, units * slots of the next round]."""
        units, count, pairs = len(self.entries), self.slots[round_], self.pairs(round_)
        seats = slots.data.reshape(-1, units, count)
        one, two = seats[..., 0 : 2 * pairs : 2], seats[..., 1 : 2 * pairs : 2]
        absent = self.missing[round_][:, 1 : 2 * pairs : 2]
        winners = np.where(absent, one, np.maximum(one, two))
        data = np.concatenate([winners, seats[..., 2 * pairs :]], axis=-1)
        fixed = slots.fixed
        if fixed is not None:
            exact = fixed.reshape(seats.shape)
            first, second = exact[..., 0 : 2 * pairs : 2], exact[..., 1 : 2 * pairs : 2]
            # Of two exact entries the larger one is exact too.
            fixed = np.concatenate([np.where(absent, first, first & second), exact[..., 2 * pairs :]], axis=-1)
            fixed = fixed.reshape(len(data), -1)
        return Rows(data.reshape(len(data), -1), slots.error, fixed=fixed)

    def result(self, slots: Rows) -> Rows:
        """The values that the windows pass."""
        return Rows(self.breakpoint.sign * slots.data + 0.0, slots.error)  # no negative zeros

    def winners(self, on: Sequence[NDArray[np.uint64]], faces: int) -> NDArray[np.int64]:
        """Position in its window of the winner of every unit, [F, units]; ``on`` [F, W] of each round."""
        units = np.broadcast_to(np.arange(len(self.entries)), (faces, len(self.entries)))
        slot = self._reached(units, np.zeros_like(units), on)
        return np.take_along_axis(self.order[units], slot[..., None], axis=2)[..., 0]

    def opponents(self, decision: NDArray[Any], on: Sequence[NDArray[np.uint64]]) -> NDArray[np.int64]:
        """The two pre-activations that decision i compares, [n, 2]; ``on`` [n, W] of the rounds before."""
        unit, slot = np.divmod(decision.astype(np.int64)[:, None], self.pairs(len(on)))
        seat = self._reached(np.repeat(unit, 2, axis=1), 2 * slot + np.arange(2), on)
        return self.entries[unit, seat]

    def _reached(
        self, unit: NDArray[np.int64], slot: NDArray[np.int64], on: Sequence[NDArray[np.uint64]]
    ) -> NDArray[np.int64]:
        """Round-0 slot of who reached ``slot`` [n, m] of window ``unit`` [n, m] behind these rounds."""
        for r in range(len(on) - 1, -1, -1):
            pairs = self.pairs(r)
            decision = unit * pairs + np.minimum(slot, pairs - 1)
            word = np.take_along_axis(on[r], decision >> 6, axis=1)
            bit = (word >> (decision & 63).astype(np.uint64) & np.uint64(1)).astype(np.int64)
            slot = 2 * slot + np.where(slot < pairs, bit, 0)
        return slot
