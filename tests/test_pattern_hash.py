"""The numba epilogues against the plain ones, on odd shapes and with poisoned outputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regiongrid.kernels.pattern_hash import decision_keys, kernels

SHAPES = [(1, 1), (3, 7), (63, 60), (17, 129), (5, 200)]


def test_keys_are_the_published_sequence() -> None:
    """SplitMix64 from state 0, and from state 1234567 as in the public test vectors of its ports."""
    assert decision_keys(0, 1)[0] == 0xE220A8397B1DCDAF
    assert decision_keys(0, 3, seed=1234567).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(st.integers(0, 1000), st.integers(0, 50), st.integers(1, 50))
def test_keys_do_not_depend_on_where_one_starts(first: int, skipped: int, count: int) -> None:
    assert (decision_keys(first, skipped + count)[skipped:] == decision_keys(first + skipped, count)).all()


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown backend 'gpu'"):
        kernels("gpu")


def inputs(rows: int, units: int, dtype: str, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    z = random.standard_normal((rows, units)).astype(dtype)
    z[random.random(z.shape) < 0.1] = 0  # exact zeros: off, and not too close to call where the band is zero
    return {
        "z": z,
        "bias": (random.standard_normal(units) * (random.random(units) < 0.5)).astype(dtype),
        "gain": (random.random(units) * 0.02).astype(dtype),
        "offset": (random.random(units) * 0.01 * (random.random(units) < 0.5)).astype(dtype),
        "scale": (random.random(rows) * (random.random(rows) < 0.7)).astype(dtype),
    }


def run_both(
    name: str, rows: int, out_units: int, given: dict[str, np.ndarray], arguments: tuple, arbiter: bool
) -> None:
    results = {}
    for backend in ("cpu", "reference"):
        z = given["z"].copy()
        hashes, flags = np.full(rows, 0xABC, np.uint64), np.zeros(rows, np.bool_)
        flags[0] = True
        norms = np.full(rows, np.nan, z.dtype)
        out = (np.full((rows, out_units), np.nan, z.dtype),) if name == "maximum" else ()
        band = (given["gain"], given["offset"], given["scale"], arbiter)
        getattr(kernels(backend), name)(z, given["bias"], *arguments, *band, *out, hashes, flags, norms)
        results[backend] = (hashes, flags, norms, out[0] if out else z)
    for fast, plain, what in zip(results["cpu"], results["reference"], ("hashes", "flags", "norms", "values")):
        if what == "flags" and arbiter:
            continue  # nobody reads the flags of the arbiter
        if what in {"hashes", "flags"}:
            assert (fast == plain).all(), f"{what} differ in rows {np.flatnonzero(fast != plain)[:5]}"
        else:
            np.testing.assert_allclose(
                fast,
                plain,
                rtol=1e-5 if z.dtype == np.float32 else 1e-13,
                atol=1e-5 if z.dtype == np.float32 else 1e-13,
            )


@pytest.mark.parametrize("arbiter", [False, True], ids=["fast", "arbiter"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
class TestAgainstReference:
    def test_relu(self, shape: tuple[int, int], dtype: str, arbiter: bool) -> None:
        run_both("relu", shape[0], shape[1], inputs(*shape, dtype, 0), (decision_keys(3, shape[1]),), arbiter)

    def test_piecewise(self, shape: tuple[int, int], dtype: str, arbiter: bool) -> None:
        random = np.random.default_rng(1)
        for bends in (1, 3):
            thresholds = np.sort(random.standard_normal((bends, shape[1])), axis=0).astype(dtype)
            slopes, intercepts = random.standard_normal((2, bends + 1, shape[1])).astype(dtype)
            keys = decision_keys(0, thresholds.size).reshape(thresholds.shape)
            arguments = (thresholds, slopes, intercepts, keys)
            run_both("piecewise", shape[0], shape[1], inputs(*shape, dtype, 2), arguments, arbiter)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_maximum(self, shape: tuple[int, int], dtype: str, arbiter: bool, sign: int) -> None:
        random = np.random.default_rng(3)
        windows = random.integers(-1, shape[1], (max(1, shape[1] // 3), 4))
        windows[:, 0] = random.integers(0, shape[1], len(windows))
        keys = decision_keys(0, windows.size).reshape(windows.shape)
        given = inputs(*shape, dtype, 4)
        given["bias"][:] = 0  # as after a ReLU: many exact ties at zero
        given["z"] = np.maximum(given["z"], 0)
        run_both("maximum", shape[0], len(windows), given, (windows, sign, keys), arbiter)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_overflow_is_flagged(bad: float) -> None:
    given = inputs(4, 5, "float32", 0)
    given["scale"][2] = bad
    flags, hashes, norms = np.zeros(4, np.bool_), np.zeros(4, np.uint64), np.zeros(4, np.float32)
    arguments = (decision_keys(0, 5), given["gain"] * 0, given["offset"] * 0, given["scale"], False)
    kernels("cpu").relu(given["z"], given["bias"], *arguments, hashes, flags, norms)
    assert flags.tolist() == [False, False, True, False]
