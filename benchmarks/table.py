"""The region table against scikit-image's regionprops_table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from skimage.measure import regionprops_table

from benchmarks.cases import CASES, folded
from benchmarks.harness import Row, seconds
from regiongrid.regions import label_image, measure_regions
from regiongrid.sampling.image import sample_image

_PROPERTIES = ("area", "eccentricity", "perimeter", "centroid")


def benchmark() -> Iterator[Row]:
    """All columns of the region table at 4096 x 4096 against four properties of regionprops_table."""
    for name in ("128x3-1k", "128x3-28k"):
        program = folded(CASES[name])
        hashes = sample_image(program, 4096).hashes
        pixel_size = program.slice.pixel_size(4096)
        table, _ = measure_regions(hashes, pixel_size)
        ours = float(np.median([seconds(lambda: measure_regions(hashes, pixel_size)) for _ in range(5)]))  # noqa: B023
        labels = label_image(hashes) + 1  # label 0 is background in scikit-image
        theirs = seconds(lambda: regionprops_table(labels, properties=_PROPERTIES))  # noqa: B023
        measured = regionprops_table(labels, properties=("area", "eccentricity"))
        areas = np.abs(table.pixels - measured["area"]).max()
        shapes = np.abs(table.eccentricity - measured["eccentricity"]).max()
        yield Row(name, "regions", len(table), "regions")
        yield Row(name, "regiongrid", ours, "s")
        yield Row(name, "regionprops_table", theirs, "s")
        yield Row(name, "regionprops_table / regiongrid", theirs / ours, "x", "regionprops_table", ">= 15")
        yield Row(name, "largest difference in area", areas, "pixels", "regionprops_table", "0")
        yield Row(name, "largest difference in eccentricity", shapes, "", "regionprops_table", "<= 1e-6")
