"""Share of pixels evaluated and share of regions found at 4096, against the exact count of regioncam."""

from __future__ import annotations

from collections.abc import Iterator

import regiongrid as rg
from benchmarks.cases import CASES, exact_count
from benchmarks.harness import Row

_WANTED = {"128x3-1k": ("<= 4%", "1.5%"), "128x3-11k": ("<= 12%", "3%"), "128x3-28k": ("<= 20%", "4%")}


def benchmark() -> Iterator[Row]:
    """Adaptive sampling at 4096 x 4096: evaluations, and distinct patterns against regioncam."""
    for case in CASES.values():
        share, error = _WANTED.get(case.name, ("", ""))
        exact = exact_count(case)
        summary = rg.estimate(case.module(), case.slice(), 4096).summary()
        yield Row(case.name, "exact regions (regioncam)", exact, "regions")
        yield Row(case.name, "distinct patterns", summary["regions"], "regions")
        yield Row(case.name, "count error", 100 * (summary["regions"] / exact - 1), "%", "regioncam",
                  f"-{error} to +0.1%" if error else "")  # fmt: skip
        yield Row(case.name, "extrapolated count error", 100 * (summary["regions_extrapolated"] / exact - 1), "%",
                  "regioncam")  # fmt: skip
        yield Row(case.name, "components error", 100 * (summary["components"] / exact - 1), "%", "regioncam")
        yield Row(case.name, "evaluated pixels", 100 * summary["evaluated_share"], "%", "all pixels", share)
