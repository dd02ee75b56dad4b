"""Splitting meshes of convex polygons by functions that are affine on each polygon; see `cpu`.

The slow way, in exact fractions and one polygon at a time, is the oracle of the tests.
"""

from __future__ import annotations
