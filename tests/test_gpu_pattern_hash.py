"""The Triton epilogues against the plain ones, on odd shapes and with poisoned outputs; and tensors on the host.

Gains, scales and offsets are small binary fractions, so that bands are exact and decisions the same whether or not a
compiler fuses multiplications with additions. Where numbers that a test compares may be fused, it says so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from regiongrid.errors import InputError
from regiongrid.kernels.pattern_hash import decision_keys, gpu, kernels

Array = np.ndarray[Any, Any]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One number; no row; rows in a narrow block; two tiles of them; several tiles of two blocks each; many blocks.
SHAPES = [(1, 1), (0, 7), (5, 3), (37, 3), (17, 63), (3, 257)]
SENTINEL = 0x5E5E5E5E5E5E5E5E

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
arbiters = pytest.mark.parametrize("arbiter", [False, True], ids=["fast", "arbiter"])


@pytest.fixture(autouse=True)
def _poison_fresh_memory() -> Iterator[None]:
    """What torch.empty returns is full of NaN, so that nothing may count on what a kernel left out."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Case:
    """What all epilogues take. The tables are [n] or, with ``which``, [S, n]."""

    z: Array
    bias: Array
    gain: Array
    offset: Array
    scale: Array
    hashes: Array
    flags: Array
    which: Array | None = None

    @property
    def rows(self) -> int:
        return len(self.z)


@dataclass(frozen=True)
class Results:
    """What an epilogue leaves behind."""

    hashes: Array
    flags: Array
    norms: Array
    values: Array


def case(rows: int, n: int, dtype: str, *, slices: int = 0, seed: int = 0) -> Case:
    random = np.random.default_rng(seed)
    z = random.standard_normal((rows, n)).astype(dtype)
    z[random.random(z.shape) < 0.1] = 0  # off, and not too close to call where the band is zero
    table = (max(slices, 1), n)
    bias, gain, offset = (
        numbers.astype(dtype) if slices else numbers[0].astype(dtype)
        for numbers in (
            random.standard_normal(table) * (random.random(table) < 0.5),
            random.integers(0, 4, table) / 1024,
            random.integers(0, 4, table) / 2048 * (random.random(table) < 0.5),
        )
    )
    return Case(
        z,
        bias,
        gain,
        offset,
        scale=(random.integers(0, 8, rows) / 8 / 2 ** (n.bit_length()) * (random.random(rows) < 0.7)).astype(dtype),
        hashes=random.integers(0, 1 << 63, rows, dtype=np.uint64),
        flags=random.random(rows) < 0.2,
        which=random.integers(0, slices, rows) if slices else None,
    )


def plain(name: str, given: Case, tables: tuple[Any, ...], *, arbiter: bool = False, backend: str = "reference",
          units: int = 0) -> Results:  # fmt: skip
    """With numpy arrays; each row's own rows of the tables broadcast."""
    rows = slice(None) if given.which is None else given.which
    z, hashes, flags, norms = given.z.copy(), given.hashes.copy(), given.flags.copy(), np.full_like(given.scale, np.nan)
    out = [np.full((given.rows, units), np.nan, z.dtype)] if units else []
    band = (given.gain[rows], given.offset[rows], given.scale, arbiter)
    with np.errstate(all="ignore"):
        getattr(kernels(backend), name)(z, given.bias[rows], *tables, *band, *out, hashes, flags, norms)
    return Results(hashes, flags, norms, out[0] if units else z)


def on_device(array: Array) -> torch.Tensor:
    """A tensor of its own; hashes and keys as int64."""
    return torch.from_numpy(array.view(np.int64) if array.dtype == np.uint64 else array).to(DEVICE, copy=True)


def spaced(matrix: Array, apart: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix with ``apart`` NaN behind every row, and all of its memory."""
    rows, columns = matrix.shape
    memory = torch.full((rows, columns + apart), torch.nan, dtype=on_device(matrix).dtype, device=DEVICE)
    memory[:, :columns] = on_device(matrix)
    return memory[:, :columns], memory


def followed(vector: Array, sentinel: float | bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The vector, and its memory, which goes on with a sentinel."""
    memory = on_device(np.append(vector, np.array([sentinel]).astype(vector.dtype)))
    return memory[:-1], memory


def triton(name: str, given: Case, tables: tuple[Any, ...], *, arbiter: bool = False, units: int = 0, apart: int = 0
           ) -> Results:  # fmt: skip
    """With tensors on the device, within memory that must stay as it is."""
    z, z_memory = spaced(given.z, apart)
    out, out_memory = spaced(np.full((given.rows, units), np.nan, given.z.dtype), apart)
    hashes, hash_memory = followed(given.hashes, SENTINEL)
    flags, flag_memory = followed(given.flags, False)
    norms, norm_memory = followed(np.full_like(given.scale, np.nan), np.nan)
    which = None if given.which is None else on_device(given.which)
    bias, gain, offset, scale = map(on_device, (given.bias, given.gain, given.offset, given.scale))
    arguments = [on_device(table) if isinstance(table, np.ndarray) else table for table in tables]
    results = (*([out] if units else []), hashes, flags, norms)
    with np.errstate(all="ignore"):  # the interpreter computes with numpy
        getattr(kernels("triton"), name)(z, bias, *arguments, gain, offset, scale, arbiter, *results, which=which)
    assert z_memory[:, given.z.shape[1] :].isnan().all()
    assert out_memory[:, units:].isnan().all()
    assert hash_memory[-1] == SENTINEL
    assert not flag_memory[-1]
    assert norm_memory[-1].isnan()
    if units:
        same(z.cpu().numpy(), given.z, "z, which is only read,")
    values = (out if units else z).cpu().numpy()
    return Results(hashes.cpu().numpy().view(np.uint64), flags.cpu().numpy(), norms.cpu().numpy(), values)


def same(found: Array, expected: Array, what: str) -> None:
    """Equal to the last bit, but for the sign of zero; a failure names the first differences."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    alike = (found == expected) | ((found != found) & (expected != expected))
    places = np.argwhere(~alike)
    assert not len(places), f"{what} differs at " + ", ".join(
        f"{tuple(map(int, p))}: {found[tuple(p)]} for {expected[tuple(p)]}" for p in places[:5]
    )


def near(found: Array, expected: Array, size: Array, what: str) -> None:
    """Equal but for rounding numbers of this size twice; a failure names the worst differences."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    error = np.abs(found - expected) / (np.finfo(expected.dtype).eps * (size + np.finfo(expected.dtype).tiny))
    worst = np.argsort(error, axis=None)[::-1][:5]
    assert (error <= 2).all(), f"{what} differs by {error.flat[worst]} roundings at {worst}"


def near_norms(found: Array, expected: Array, terms: int) -> None:
    tolerance = np.finfo(expected.dtype).eps * (4 + np.sqrt(terms))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0)


def agree(found: Results, expected: Results, *, flags: Array | None = None) -> None:
    """Decisions and values exactly, norms but for the order of the sum."""
    same(found.hashes, expected.hashes, "hash")
    same(found.flags, expected.flags if flags is None else flags, "flag")
    same(found.values, expected.values, "value")
    near_norms(found.norms, expected.norms, expected.values.shape[1])


def agree_fused(found: Results, expected: Results, given: Case, tables: tuple[Array, ...]) -> None:
    """As `agree`, for values that are products plus intercepts, which may be fused."""
    same(found.hashes, expected.hashes, "hash")
    same(found.flags, expected.flags, "flag")
    bias = given.bias if given.which is None else given.bias[given.which]
    _, slopes, intercepts, _ = tables
    size = np.abs(given.z + bias) * np.abs(slopes).max(axis=0) + np.abs(intercepts).max(axis=0)
    near(found.values, expected.values, size, "value")
    near_norms(found.norms, expected.norms, found.values.shape[1])


def relu_flags(given: Case, expected: Results, arbiter: bool) -> Array:
    """The arbiter of ReLU does not look for close calls, on the CPU either: its flags tell nobody anything."""
    return given.flags | ~np.isfinite(given.scale) if arbiter else expected.flags


def bends_of(n: int, count: int, dtype: str) -> tuple[Array, Array, Array, Array]:
    """Ascending thresholds, slopes, intercepts, keys."""
    random = np.random.default_rng(count)
    thresholds = np.sort(random.standard_normal((count, n)), axis=0).astype(dtype)
    slopes, intercepts = random.standard_normal((2, count + 1, n)).astype(dtype)
    return thresholds, slopes, intercepts, decision_keys(0, count * n).reshape(count, n)


def windows_of(n: int, units: int, entries: int) -> tuple[Array, Array]:
    """Windows, an entry in every one but not always the first, and keys."""
    random = np.random.default_rng(entries)
    windows = random.integers(-1, n, (units, entries))
    windows[np.arange(units), random.integers(0, entries, units)] = random.integers(0, n, units)
    return windows, decision_keys(5, windows.size).reshape(windows.shape)


@arbiters
@dtypes
class TestAgainstReference:
    @shapes
    def test_relu(self, shape: tuple[int, int], dtype: str, arbiter: bool) -> None:
        given, tables = case(*shape, dtype), (decision_keys(3, shape[1]),)
        expected = plain("relu", given, tables, arbiter=arbiter)
        found = triton("relu", given, tables, arbiter=arbiter, apart=5)
        agree(found, expected, flags=relu_flags(given, expected, arbiter))

    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize("shape", [(5, 3), (17, 63), (0, 2)], ids=lambda s: f"{s[0]}x{s[1]}")
    def test_piecewise(self, shape: tuple[int, int], count: int, dtype: str, arbiter: bool) -> None:
        given, tables = case(*shape, dtype), bends_of(shape[1], count, dtype)
        expected = plain("piecewise", given, tables, arbiter=arbiter)
        found = triton("piecewise", given, tables, arbiter=arbiter, apart=1)
        agree_fused(found, expected, given, tables)

    @pytest.mark.parametrize(
        ("rows", "n", "units", "entries", "sign"),
        [(1, 1, 1, 1, 1), (5, 7, 3, 4, -1), (17, 63, 40, 2, 1), (17, 63, 40, 3, -1), (3, 30, 9, 9, 1)],
    )
    def test_maximum(self, rows: int, n: int, units: int, entries: int, sign: int, dtype: str, arbiter: bool) -> None:
        given = case(rows, n, dtype)
        # Many ties at zero, as behind a ReLU.
        given = replace(given, z=np.maximum(given.z, 0), bias=given.bias * (np.arange(n) % 2).astype(dtype))
        windows, keys = windows_of(n, units, entries)
        tables = (windows, sign, keys)
        expected = plain("maximum", given, tables, arbiter=arbiter, units=units)
        agree(triton("maximum", given, tables, arbiter=arbiter, units=units, apart=3), expected)

    def test_each_slice_has_its_tables(self, dtype: str, arbiter: bool) -> None:
        given = case(13, 37, dtype, slices=3)
        tables: tuple[Any, ...] = (decision_keys(3, 37),)
        expected = plain("relu", given, tables, arbiter=arbiter)
        agree(triton("relu", given, tables, arbiter=arbiter), expected, flags=relu_flags(given, expected, arbiter))
        tables = bends_of(37, 2, dtype)
        expected = plain("piecewise", given, tables, arbiter=arbiter)
        agree_fused(triton("piecewise", given, tables, arbiter=arbiter), expected, given, tables)
        windows, keys = windows_of(37, 11, 4)
        tables = (windows, 1, keys)
        expected = plain("maximum", given, tables, arbiter=arbiter, units=11)
        agree(triton("maximum", given, tables, arbiter=arbiter, units=11), expected)


@pytest.mark.parametrize("n", [2048, 2050, 4200])
def test_long_rows_are_split(n: int) -> None:
    """2048 numbers are one part."""
    given, tables = case(2, n, "float32"), (decision_keys(0, n),)
    agree(triton("relu", given, tables), plain("relu", given, tables))


def test_long_rows_of_windows() -> None:
    given, units = case(1, 50, "float64"), 2060
    windows, keys = windows_of(50, units, 2)
    tables = (windows, 1, keys)
    agree(triton("maximum", given, tables, units=units), plain("maximum", given, tables, units=units))


def test_programs_share_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three programs for fifteen tiles: three parts of five groups of rows."""
    monkeypatch.setattr(gpu, "_MOST_PROGRAMS", 3)
    given, tables = case(17, 4100, "float32"), (decision_keys(0, 4100),)
    agree(triton("relu", given, tables), plain("relu", given, tables))


@pytest.mark.parametrize("n", [5, 100, 2100])
def test_a_row_does_not_depend_on_the_batch(n: int) -> None:
    given, tables = case(6, n, "float32"), bends_of(n, 1, "float32")
    together = triton("piecewise", given, tables)
    for row in (0, 5):
        z, scale, hashes, flags = (item[row : row + 1] for item in (given.z, given.scale, given.hashes, given.flags))
        alone = triton("piecewise", replace(given, z=z, scale=scale, hashes=hashes, flags=flags), tables, apart=row)
        for name in ("hashes", "flags", "norms", "values"):
            same(getattr(alone, name), getattr(together, name)[row : row + 1], name)


@dtypes
def test_overflow_is_flagged(dtype: str) -> None:
    """As on the CPU: a scale that is no finite number, and a pre-activation that is none or cannot be decided."""
    given = case(40, 9, dtype)
    given.z[[3, 4, 5, 6, 21], [0, 8, 3, 2, 8]] = np.nan, np.inf, -np.inf, np.nan, np.nan
    given.scale[:] = 0.5
    given.scale[[10, 11, 33]] = np.nan, np.inf, -np.inf
    given.offset[:] = 0.25
    given.gain[:] = 0
    given = replace(
        given, flags=np.zeros(40, np.bool_), z=np.where(np.abs(given.z) < 1, 2, given.z), bias=given.bias * 0
    )
    bends = bends_of(9, 2, dtype)
    windows = np.array([[0, 1, 2], [3, -1, 4], [8, 5, 7]])
    calls: list[tuple[str, tuple[Any, ...], int]] = [
        ("relu", (decision_keys(0, 9),), 0),
        ("piecewise", (bends[0] * 0 - [[0.5], [-0.5]], *bends[1:]), 0),
        ("maximum", (windows, 1, decision_keys(0, 9).reshape(3, 3)), 3),
    ]
    for name, tables, units in calls:
        tables = tuple(
            table.astype(dtype) if getattr(table, "dtype", None) == np.float64 else table for table in tables
        )
        for arbiter in (False, True):
            found = triton(name, given, tables, arbiter=arbiter, units=units)
            expected = plain(name, given, tables, arbiter=arbiter, units=units, backend="cpu")
            same(found.flags, expected.flags, f"flag of {name}")
            same(found.hashes, expected.hashes, f"hash of {name}")
            assert found.flags[[10, 11, 33]].all()
            assert arbiter or found.flags[[3, 6, 21]].all()
            if name == "piecewise":  # its values may be fused
                same(np.isfinite(found.values), np.isfinite(expected.values), "finite value")
            else:
                same(found.values, expected.values, f"value of {name}")


def at_the_edge(band: float, dtype: str) -> tuple[Case, Array, Array]:
    """One unit a row: numbers on zero and at the edges of the band, which ones are inside it, which ones beyond."""
    edges = np.array([band, -band, 0, 1, -1], dtype)
    z = np.concatenate([edges, np.nextafter(edges, np.array(np.inf, dtype)), np.nextafter(edges, np.array(-1, dtype))])
    zeros = np.zeros(1, dtype)
    # band = gain * scale + offset, exactly
    given = Case(z[:, None], zeros, zeros + band, zeros + band / 2, np.full(15, 0.5, dtype),
                 np.zeros(15, np.uint64), np.zeros(15, np.bool_))  # fmt: skip
    return given, np.abs(z) < band, z > band


@dtypes
@pytest.mark.parametrize("band", [0, 0.25])
def test_edges_of_the_band(band: float, dtype: str) -> None:
    """Exactly on a threshold is off; exactly at the edge is far enough, but for the arbiter not beyond it."""
    given, inside, beyond = at_the_edge(band, dtype)
    keys = decision_keys(0, 1)
    for arbiter in (False, True):
        on = beyond if arbiter else given.z[:, 0] > 0
        found = triton("relu", given, (keys,), arbiter=arbiter)
        same(found.hashes, np.where(on, keys, np.uint64(0)), "hash")
        same(found.flags, np.zeros(15, np.bool_) if arbiter else inside, "flag")
        same(found.values[:, 0], np.where(on, given.z[:, 0], 0), "value")
        # A threshold at 1 of z + 1, where the sum is exact: the last bits of numbers near zero are lost.
        shifted = given.z[:, 0] + np.ones(15, dtype)
        exact = shifted - 1 == given.z[:, 0]
        assert exact.sum() >= 5
        bend = (np.array([[1]], dtype), np.array([[2], [4]], dtype), np.array([[0], [1]], dtype), keys[None])
        found = triton("piecewise", replace(given, bias=np.ones(1, dtype)), bend, arbiter=arbiter)
        same(found.hashes[exact], np.where(on, keys, np.uint64(0))[exact], "hash")
        same(found.flags[exact], inside[exact], "flag")
        same(found.values[exact, 0], np.where(on, 4 * shifted + 1, 2 * shifted)[exact], "value")


@dtypes
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_and_close_calls_between_entries(sign: int, dtype: str) -> None:
    """The first of equal entries wins; the band of a comparison is the sum of both bands."""
    rows = np.array([
        [3, 3, 3, 1],  # a tie
        [1, 3, 3, 3],  # a tie of others than the first
        [0, 0, 0, 0],  # clipped: a tie that is none
        [3, 3.25, 1, 1],  # too close
        [3, 3.5, 1, 1],  # at the very edge: far enough, but not for the arbiter to prefer the second
        [3, 3.75, 1, 1],
        [-0.0, 0.0, -2, -3],
    ], dtype) * sign  # fmt: skip
    windows, keys = np.array([[0, 1, -1, 2], [-1, 3, -1, -1]]), decision_keys(0, 8).reshape(2, 4)
    numbers = np.zeros(4, dtype), np.zeros(4, dtype), np.full(4, 0.25, dtype), np.ones(7, dtype)
    given = Case(rows, *numbers, np.zeros(7, np.uint64), np.zeros(7, np.bool_))
    expected = {False: [0, 1, 0, 1, 1, 1, 0], True: [0, 1, 0, 0, 0, 1, 0]}
    for arbiter, winners in expected.items():
        found = triton("maximum", given, (windows, sign, keys), arbiter=arbiter, units=2)
        # The second window has but one entry, which is never in doubt.
        same(found.hashes, keys[0, winners] ^ keys[1, 1], "hash")
        same(found.values, np.stack([rows[np.arange(7), winners], rows[:, 3]], axis=1), "value")
        flagged = [True, True, False, True, arbiter, False, False]
        same(found.flags, np.array(flagged), "flag")


def test_which_of_int32_and_tables_for_all() -> None:
    """Tables without a row a slice go with any slice."""
    given, tables = case(9, 12, "float32", slices=3), (decision_keys(0, 12),)
    assert given.which is not None
    given = replace(given, gain=given.gain[1], which=given.which.astype(np.int32))
    assert given.which is not None
    expected = plain("relu", replace(given, gain=np.broadcast_to(given.gain, (3, 12))), tables)
    agree(triton("relu", given, tables), expected)


def test_first_row_of_the_tables_without_which() -> None:
    given, tables = case(9, 12, "float32", slices=3), (decision_keys(0, 12),)
    first = replace(given, bias=given.bias[0], gain=given.gain[0], offset=given.offset[0], which=None)
    agree(triton("relu", replace(given, which=None), tables), plain("relu", first, tables))


def arguments(name: str, backend: str) -> list[Any]:
    """Small inputs of an epilogue, by position: tensors of the device for triton, of the CPU otherwise."""
    given, n, rows = case(6, 8, "float32"), 8, 6
    windows, keys = windows_of(n, 5, 3)
    tables: dict[str, tuple[Any, ...]] = {
        "relu": (decision_keys(0, n),), "piecewise": bends_of(n, 2, "float32"), "maximum": (windows, 1, keys)
    }  # fmt: skip
    out = [np.full((rows, 5), np.nan, np.float32)] if name == "maximum" else []
    results = (*out, given.hashes, given.flags, np.full(rows, np.nan, np.float32))
    arrays = [given.z, given.bias, *tables[name], given.gain, given.offset, given.scale, False, *results]
    tensors = [on_device(item) if isinstance(item, np.ndarray) else item for item in arrays]
    return tensors if backend == "triton" else [t.cpu() if isinstance(t, torch.Tensor) else t for t in tensors]


@pytest.mark.parametrize(
    ("name", "place", "change", "message"),
    [
        ("relu", 0, lambda t: t.half(), r"z must be a float32 or float64 tensor .*got torch\.float16 of shape"),
        ("relu", 0, lambda t: t[0], r"z must be .* with a row a point, got torch\.float32 of shape \(8,\)"),
        ("relu", 0, lambda t: t.mT.contiguous().mT, r"z must have rows of adjacent.*strides \(1, 6\).*z\.contiguous"),
        ("relu", 0, lambda t: t[:1].expand(6, 8), r"z must have rows .* do not overlap, got strides \(0, 1\)"),
        ("relu", 1, lambda t: t.double(), r"bias must be of torch\.float32, of shape \(8,\).*got torch\.float64"),
        ("relu", 2, lambda t: t[:5], r"keys must be of torch\.int64, of shape \(8,\).* of shape \(5,\)"),
        ("relu", 3, lambda t: t.to("meta"), r"gain must be .* on meta"),
        ("relu", 7, lambda t: t.repeat(2)[::2], r"hashes must be contiguous, got strides \(2,\)"),
        ("relu", 8, lambda t: t.byte(), r"flags must be of torch\.bool.* got torch\.uint8"),
        ("piecewise", 3, lambda t: t[:2], r"slopes must be .*of shape \(3, 8\).* of shape \(2, 8\)"),
        ("maximum", 2, lambda t: t.int(), r"windows must be of torch\.int64.*got torch\.int32"),
        ("maximum", 9, lambda t: t[:, :3], r"out must be .*of shape \(6, 5\).* of shape \(6, 3\)"),
        ("maximum", 9, lambda t: t.mT.contiguous().mT, r"out must have rows of adjacent"),
    ],
    ids=lambda item: item if isinstance(item, str) and item.isalpha() else "",
)  # fmt: skip
def test_refuses_what_it_cannot_read(name: str, place: int, change: Any, message: str) -> None:
    inputs = arguments(name, "triton")
    inputs[place] = change(inputs[place])
    with pytest.raises(InputError, match=message):
        getattr(kernels("triton"), name)(*inputs)


def test_refuses_which() -> None:
    with pytest.raises(InputError, match=r"which must be of torch\.int64, of shape \(6,\).*got torch\.float32"):
        gpu.relu(*arguments("relu", "triton"), which=torch.zeros(6, device=DEVICE))
    for backend in ("cpu", "reference"):
        with pytest.raises(ValueError, match="which is for backend 'triton' alone"):
            kernels(backend).relu(*arguments("relu", backend), which=torch.zeros(6, dtype=torch.int64))


@pytest.mark.parametrize("name", ["relu", "piecewise", "maximum"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_host_takes_tensors(backend: str, name: str) -> None:
    """The same as with arrays, in the memory of the tensors, also for some of both."""
    tensors = arguments(name, backend)
    arrays = [item.clone().numpy() if isinstance(item, torch.Tensor) else item for item in tensors]
    key_place = {"relu": 2, "piecewise": 5, "maximum": 4}[name]
    for place in (key_place, -3):
        arrays[place] = arrays[place].view(np.uint64)
    mixed = [a.copy() if isinstance(a, np.ndarray) and k % 2 else t for k, (a, t) in enumerate(zip(arrays, tensors))]
    mixed = [item.clone() if isinstance(item, torch.Tensor) else item for item in mixed]
    before = tensors[-3].clone()
    kernel = getattr(kernels(backend), name)
    kernel(*arrays)
    kernel(*tensors, which=None)
    kernel(*mixed)
    assert (tensors[-3] != before).any()
    for array, tensor, either in zip(arrays, tensors, mixed):
        if isinstance(array, np.ndarray):
            same(tensor.numpy().view(array.dtype), array, "tensor")
            same(np.asarray(either).view(array.dtype), array, "array or tensor")


def test_one_evaluator_drives_all_backends() -> None:
    """The same call on each backend: hashes and flags are the same."""
    found = {}
    for backend in ("reference", "cpu", "triton"):
        inputs = arguments("relu", backend)
        kernels(backend).relu(*inputs, which=None)
        found[backend] = [inputs[place].cpu() for place in (-3, -2)]
    for backend in ("cpu", "triton"):
        for one, other in zip(found[backend], found["reference"]):
            assert torch.equal(one, other)


def test_numba_and_triton_wait_until_they_are_asked_for() -> None:
    code = (
        "import sys; from regiongrid.kernels.pattern_hash import kernels; kernels('reference'); "
        "print([name for name in ('numba', 'triton', 'torch') if name in sys.modules]); "
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
