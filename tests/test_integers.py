"""Whole numbers in limbs against Python's own integers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from regiongrid.subdivision.integers import Factors, added, from_floats, lifted, scale_of, times, whole


def as_integers(numbers: Any, scale: int) -> Any:
    """numbers * 2^scale by exact fractions; fails if that is not whole."""
    if isinstance(numbers, list):
        return [as_integers(entry, scale) for entry in numbers]
    exact = Fraction(numbers) * 2**scale
    assert exact.denominator == 1
    return int(exact)


def random_numbers(rng: np.random.Generator, shape: tuple[int, ...], decades: int) -> np.ndarray:
    numbers = rng.standard_normal(shape) * 10.0 ** rng.integers(-decades, decades, shape)
    numbers[rng.random(shape) < 0.2] = 0
    return numbers


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sparse", [False, True])
def test_products_are_exact(seed: int, sparse: bool) -> None:
    rng = np.random.default_rng(seed)
    weights, numbers = random_numbers(rng, (6, 9), 7), random_numbers(rng, (9, 3), 30)
    scale, own = scale_of(weights), scale_of(numbers)
    left, right = as_integers(weights.tolist(), scale), as_integers(numbers.tolist(), own)
    factors = Factors(csr_array(weights) if sparse else weights)
    assert factors.scale == scale
    want = [[sum(left[i][k] * right[k][j] for k in range(9)) for j in range(3)] for i in range(6)]
    product = factors.product(from_floats(numbers, own))
    assert whole(product) == want
    assert whole(factors.product(from_floats(numbers, own), slice(4, 5))) == want[4:5]
    again = Factors(weights.T.copy()).product(product)  # numbers of many limbs
    assert whole(again) == [[sum(left[i][k] * want[i][j] for i in range(6)) for j in range(3)] for k in range(9)]


@pytest.mark.parametrize("seed", range(10))
def test_sums_shifts_and_factors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two, slopes = (random_numbers(rng, shape, 12) for shape in ((5, 3), (5, 3), (5,)))
    scale = max(scale_of(one), scale_of(two))
    a, b = as_integers(one.tolist(), scale), as_integers(two.tolist(), scale)
    limbs = from_floats(one, scale), from_floats(two, scale)
    assert whole(added(list(limbs))) == [[x + y for x, y in zip(p, q)] for p, q in zip(a, b)]
    assert whole(lifted(limbs[0], 36)) == [[x << 36 for x in row] for row in a]
    own = scale_of(slopes)
    factors = as_integers(slopes.tolist(), own)
    assert whole(times(limbs[0], slopes, own)) == [[x * factor for x in row] for row, factor in zip(a, factors)]


@pytest.mark.parametrize(
    "number", [0.0, 1.0, -1.0, 2.0**-1074, -(2.0**1000), 1e308, 0.1, 2.0**17, -(2.0**17), 2.0**18 - 1]
)
def test_single_numbers(number: float) -> None:
    scale = scale_of(np.array([number]))
    assert scale % 18 == 0
    assert whole(from_floats(np.array([number]), scale)) == as_integers([number], scale)
