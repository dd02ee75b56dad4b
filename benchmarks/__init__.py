"""Benchmarks: `python -m benchmarks` runs them all, `python -m benchmarks dense table` some. They are no tests."""
