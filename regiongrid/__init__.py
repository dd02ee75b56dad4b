"""Linear regions of piecewise-linear networks on 2-D slices near data.

>>> import regiongrid as rg
>>> net = rg.load_network("model.pt")                 # doctest: +SKIP
>>> est = rg.estimate(net, rg.Slice.through(x0, x1, x2), res=4096)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from regiongrid.comparison import Comparison, compare
    from regiongrid.data import load_data
    from regiongrid.errors import (
        InputError,
        MemoryLimitError,
        RegiongridError,
        UnsafeCheckpointError,
        UnsupportedOperatorError,
    )
    from regiongrid.estimation import Estimate, estimate
    from regiongrid.monitor import RegionMonitor
    from regiongrid.network import Network, load_network
    from regiongrid.regions import RegionTable
    from regiongrid.slices import Slice
    from regiongrid.subdivision import Exact, exact

# Where each public name lives; it is imported on first use, so that `import regiongrid` itself costs nothing.
_HOME = {
    "Comparison": "regiongrid.comparison",
    "Estimate": "regiongrid.estimation",
    "Exact": "regiongrid.subdivision",
    "InputError": "regiongrid.errors",
    "MemoryLimitError": "regiongrid.errors",
    "Network": "regiongrid.network",
    "RegionMonitor": "regiongrid.monitor",
    "RegionTable": "regiongrid.regions",
    "RegiongridError": "regiongrid.errors",
    "Slice": "regiongrid.slices",
    "UnsafeCheckpointError": "regiongrid.errors",
    "UnsupportedOperatorError": "regiongrid.errors",
    "compare": "regiongrid.comparison",
    "estimate": "regiongrid.estimation",
    "exact": "regiongrid.subdivision",
    "load_data": "regiongrid.data",
    "load_network": "regiongrid.network",
}

__all__ = [
    "Comparison",
    "Estimate",
    "Exact",
    "InputError",
    "MemoryLimitError",
    "Network",
    "RegionMonitor",
    "RegionTable",
    "RegiongridError",
    "Slice",
    "UnsafeCheckpointError",
    "UnsupportedOperatorError",
    "__version__",
    "compare",
    "estimate",
    "exact",
    "load_data",
    "load_network",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regiongrid' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
