"""The examples in the docstrings, run as written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import regiongrid
import regiongrid.kernels

# An editable install maps regiongrid.kernels to a folder of its own, which walking regiongrid alone would miss.
MODULES = sorted(
    {"regiongrid"}
    | {
        module.name
        for package in (regiongrid, regiongrid.kernels)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failures == 0
