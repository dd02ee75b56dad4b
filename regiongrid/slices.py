"""Slices: 2-D squares through input space, near data, on which regions are counted.

A slice is x(u, v) = o + u a + v b with a, b orthonormal in R^d and |u|, |v| <= h. Because a and b are orthonormal,
lengths and areas in (u, v) are lengths and areas in input space.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from regiongrid.arguments import check_whole
from regiongrid.errors import InputError
from regiongrid.files import atomic_path, read_npz

Array = NDArray[np.float64]
Kind = Literal["three", "one", "nearest"]

ORTHONORMAL_TOLERANCE = 1e-9
DEGENERATE_TOLERANCE = 1e-9
_ANCHOR_MARGIN = 1.5  # Hanin & Rolnick's window: one and a half times the anchors' largest coordinate
_LARGEST_ENTRY = 1e150  # its square is still a float64
_CHUNK_ENTRIES = 1 << 22
_ANCHORS_OF_KIND = {"three": 3, "one": 1, "nearest": 1}


@dataclass(frozen=True, eq=False, init=False)
class Slice:
    """A square piece of a plane in input space: x(u, v) = origin + u * u_axis + v * v_axis, |u|, |v| <= half_width.

    Parameters
    ----------
    origin : array, [d]
        The centre of the square, d >= 2. Arrays or tensors of any shape are flattened and converted to float64.
    u, v : array, [d]
        The two axes, orthonormal to 1e-9 (every entry of the Gram matrix).
    half_width : float
        Half the side of the square, in input-space units.
    anchors : array, [k, 2], optional
        (u, v) coordinates of the data points the slice was built from.
    description : str, optional
        One line for reports.

    Raises
    ------
    InputError
        Lengths differ, d < 2, an entry is not finite, the axes are not orthonormal, or ``half_width`` is not positive.

    Notes
    -----
    The arrays are copies and read-only. ``==`` compares identity, as for arrays.

    Examples
    --------
    >>> plane = Slice([0, 0, 1], [1, 0, 0], [0, 1, 0], half_width=2.0)
    >>> plane.points([[0.5, -1.0]])
    array([[ 0.5, -1. ,  1. ]])
    >>> plane.domain_area
    16.0
    """

    origin: Array
    u: Array
    v: Array
    half_width: float
    anchors: Array
    description: str

    def __init__(
        self,
        origin: ArrayLike,
        u: ArrayLike,
        v: ArrayLike,
        half_width: float,
        anchors: ArrayLike | None = None,
        description: str = "",
    ) -> None:
        values = {
            "origin": _vector(origin, "slice origin"),
            "u": _vector(u, "slice axis u"),
            "v": _vector(v, "slice axis v"),
            "half_width": _positive(half_width),
            "anchors": _anchor_coordinates(anchors),
            "description": str(description),
        }
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)
        _check_axes(self.origin, self.u, self.v)

    @classmethod
    def through(cls, x0: ArrayLike, x1: ArrayLike, x2: ArrayLike, half_width: float | None = None) -> Slice:
        """The plane through three points.

        The origin is their mean, a is along x1 - x0, b is x2 - x0 after Gram-Schmidt, and the half-width is 1.5 times
        the largest absolute (u, v) coordinate of the three points unless given.

        Parameters
        ----------
        x0, x1, x2 : array or tensor, d entries each, any shape
            The anchors.
        half_width : float, optional
            Half the side of the square, in input-space units.

        Raises
        ------
        InputError
            Two anchors are equal, or the three lie on a line, up to 1e-9 relative; or their sizes differ.

        Notes
        -----
        The plane of Hanin & Rolnick, "Deep ReLU Networks Have Surprisingly Few Activation Patterns" (2019).

        Examples
        --------
        >>> plane = Slice.through([0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 3.0, 0.0])
        >>> plane.half_width
        3.0
        >>> plane.anchors.tolist()
        [[-1.0, -1.0], [2.0, -1.0], [-1.0, 2.0]]
        """
        return _through((x0, x1, x2), ("x0", "x1", "x2"), half_width)

    @classmethod
    def around(cls, x0: ArrayLike, half_width: float, seed: int = 0) -> Slice:
        """A square centred at one point, along two random directions.

        The directions are two standard-normal vectors from ``Generator(PCG64(seed))`` after Gram-Schmidt.

        Parameters
        ----------
        x0 : array or tensor, d entries, any shape
            The centre, and the only anchor, at (0, 0).
        half_width : float
            Half the side h of the square: its area is 4 h^2. (SplineCam's square has its corners at x0 +- p a and
            x0 +- p b: circumradius p, area 2 p^2.)
        seed : int
            Seed of the two directions.

        Raises
        ------
        InputError
            ``x0`` has fewer than two entries or one that is not finite, or ``half_width`` is not positive.
        """
        centre = _vector(x0, "anchor x0")
        _check_dimension(centre.size)
        a, b = _generator(seed).standard_normal((2, centre.size))
        u, v = _orthonormal_pair(a, b)
        return cls(centre, u, v, half_width, [[0.0, 0.0]], f"square around one point, random directions of seed {seed}")

    @classmethod
    def nearest_other_class(cls, x: ArrayLike, y: ArrayLike, index: int, half_width: float | None = None) -> Slice:
        """The plane through a data point, its nearest point of another class, and its nearest point of its own class.

        Distances are Euclidean. Exact duplicates of the point (distance 0) are passed over, since they span no plane;
        of several nearest points the one with the smallest index is taken.

        Parameters
        ----------
        x : array or tensor, [n, ...]
            The samples.
        y : array or tensor, [n]
            Their class labels.
        index : int
            Which sample, 0 <= index < n.
        half_width : float, optional
            As in :meth:`through`.

        Raises
        ------
        InputError
            No other class, no other point of the same class, a bad index, or degenerate anchors.
        """
        samples = _samples(x)
        labels = _labels(y, len(samples))
        i = _index(index, len(samples))
        other, same = _nearest_neighbours(samples, labels, i)
        text = (
            f"plane through data point {i} (class {labels[i]}), its nearest of another class {other} "
            f"(class {labels[other]}) and its nearest of the same class {same}"
        )
        return dataclasses.replace(_through_rows(samples, (i, other, same), half_width), description=text)

    @classmethod
    def square(cls, half_width: float = 1.0) -> Slice:
        """The square [-h, h]^2 of a 2-D input space itself: origin 0, axes e1 and e2.

        Examples
        --------
        >>> Slice.square().points([[0.25, -1.0]])
        array([[ 0.25, -1.  ]])
        """
        width = _positive(half_width)
        return cls([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], width, None, f"the square [-{width:g}, {width:g}]^2")

    @classmethod
    def random(cls, d: int, seed: int = 0) -> Slice:
        """The plane through three standard-normal points of R^d, drawn from ``Generator(PCG64(seed))``."""
        _check_dimension(d)
        anchors = _generator(seed).standard_normal((3, d))
        return dataclasses.replace(
            cls.through(*anchors), description=f"plane through three standard-normal points of seed {seed}"
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Slice:
        """Read a slice from a ``.npz`` archive; pickled content is never loaded.

        Needed keys: ``origin`` [d], ``u`` [d], ``v`` [d], ``half_width`` []. Optional: ``anchors`` [k, 2],
        ``description`` (text). Other keys are ignored.

        Raises
        ------
        InputError
            The file cannot be read, a key is missing, a shape is wrong, or the axes are not orthonormal.
        """
        arrays = read_npz(path, "slice file")
        _check_keys(arrays, Path(path))
        text = str(arrays["description"]) if "description" in arrays else f"slice file {Path(path).name}"
        try:
            return cls(
                arrays["origin"], arrays["u"], arrays["v"], arrays["half_width"].item(), arrays.get("anchors"), text
            )
        except InputError as error:
            raise InputError(f"slice file {path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the slice as a ``.npz`` archive that :meth:`load` reads back to the same bits.

        Raises
        ------
        RegiongridError
            The file cannot be written.
        """
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.savez(
                handle,
                origin=self.origin,
                u=self.u,
                v=self.v,
                half_width=np.float64(self.half_width),
                anchors=self.anchors,
                description=np.array(self.description),
            )

    @property
    def dimension(self) -> int:
        """d, the number of entries of an input."""
        return self.origin.size

    @property
    def domain_area(self) -> float:
        """Area of the square, 4 h^2, in squared input-space units."""
        return 4.0 * self.half_width**2

    def points(self, uv: ArrayLike) -> Array:
        """Input-space points origin + u a + v b.

        Parameters
        ----------
        uv : array, [n, 2]
            Slice coordinates (inside the square or not).

        Returns
        -------
        array, [n, d], float64
        """
        coordinates = _array(uv, "slice coordinates")
        if coordinates.ndim != 2 or coordinates.shape[1] != 2:
            raise InputError(f"slice coordinates must have shape [n, 2], got {list(coordinates.shape)}")
        return self.origin + coordinates[:, :1] * self.u + coordinates[:, 1:] * self.v

    def coordinates(self, x: ArrayLike) -> Array:
        """(u, v) of the orthogonal projections of input-space points on the plane.

        Parameters
        ----------
        x : array or tensor, [n, ...] with d entries a sample

        Returns
        -------
        array, [n, 2], float64
        """
        samples = _array(_samples(x), "points")
        if samples.shape[1] != self.dimension:
            raise InputError(f"points have {samples.shape[1]} entries each, the slice has d = {self.dimension}")
        uv: Array = (samples - self.origin) @ np.stack([self.u, self.v], axis=1)
        return uv

    def pixel_centres(self, res: int) -> Array:
        """Coordinates of the pixel centres along one axis: u_j = (2j + 1 - res) * (half_width / res), [res].

        Examples
        --------
        >>> Slice.square().pixel_centres(4)
        array([-0.75, -0.25,  0.25,  0.75])
        """
        count = _resolution(res)
        odd = np.arange(1 - count, count, 2, dtype=np.float64)
        return odd * (self.half_width / count)

    def pixel_size(self, res: int) -> float:
        """Side of a pixel, 2 h / res, in input-space units."""
        return 2.0 * self.half_width / _resolution(res)


def slices_from_data(
    dataset_x: ArrayLike,
    dataset_y: ArrayLike | None = None,
    *,
    anchors: Sequence[int] | None = None,
    count: int = 1,
    kind: Kind = "three",
    half_width: float | None = None,
    seed: int = 0,
) -> list[Slice]:
    """Slices at given or random data points.

    Parameters
    ----------
    dataset_x : array or tensor, [n, ...]
        The samples.
    dataset_y : array or tensor, [n], optional
        Class labels, needed for ``kind="nearest"``.
    anchors : sequence of int, optional
        Indices of the anchors: three for ``kind="three"``, else one. Random indices if not given.
    count : int
        Number of slices. With given ``anchors`` only ``kind="one"`` can make more than one.
    kind : {"three", "one", "nearest"}
        :meth:`Slice.through` three samples, :meth:`Slice.around` one, or :meth:`Slice.nearest_other_class` of one.
    half_width : float, optional
        Half the side of the squares; needed for ``kind="one"``, else the rule of :meth:`Slice.through`.
    seed : int
        Seed of the drawn indices, ``Generator(PCG64(seed))``, and of the directions: slice i of ``kind="one"`` is
        ``Slice.around(x, half_width, seed + i)``.

    Returns
    -------
    list of Slice
        ``count`` slices. The first m of them are the same for every ``count`` >= m.

    Raises
    ------
    InputError
        Bad or repeated indices, degenerate anchors, or fewer than ``count`` different choices of anchors.

    Notes
    -----
    The indices of one random slice differ from each other, and no two slices have the same set of them. Random anchors
    that are degenerate (say, duplicate images) are drawn again; given ones are an error.
    """
    samples = _samples(dataset_x)
    if kind not in _ANCHORS_OF_KIND:
        raise InputError(f"kind of slice must be one of {', '.join(_ANCHORS_OF_KIND)}, got {kind!r}")
    check_whole("number of slices", count, 1)
    build = _builder(samples, dataset_y, kind, half_width, seed)
    if anchors is None:
        return _at_random_anchors(build, len(samples), _ANCHORS_OF_KIND[kind], int(count), seed)
    chosen = _given_anchors(anchors, kind, len(samples))
    if count > 1 and kind != "one":
        raise InputError(f"given anchors make one slice, got number of slices {count}; leave out one of the two")
    return [build(chosen, i) for i in range(int(count))]


def _builder(
    samples: NDArray[Any], labels: ArrayLike | None, kind: Kind, half_width: float | None, seed: int
) -> Callable[[tuple[int, ...], int], Slice]:
    """Return a function of the anchors' indices and the slice's number that makes the slice."""
    if kind == "one":
        if half_width is None:
            raise InputError("a slice around one data point needs a half-width: --half-width H (half_width=H)")
        width = half_width

        def around(chosen: tuple[int, ...], number: int) -> Slice:
            plane = Slice.around(samples[chosen[0]], width, seed + number)
            text = f"square around data point {chosen[0]}, random directions of seed {seed + number}"
            return dataclasses.replace(plane, description=text)

        return around
    if kind == "nearest":
        if labels is None:
            raise InputError("slices towards the nearest other class need class labels, and these data have none")
        classes = _labels(labels, len(samples))
        return lambda chosen, _: Slice.nearest_other_class(samples, classes, chosen[0], half_width)

    def through(chosen: tuple[int, ...], _: int) -> Slice:
        text = f"plane through data points {', '.join(map(str, chosen))}"
        return dataclasses.replace(_through_rows(samples, chosen, half_width), description=text)

    return through


def _at_random_anchors(
    build: Callable[[tuple[int, ...], int], Slice], n: int, size: int, count: int, seed: int
) -> list[Slice]:
    possible = math.comb(n, size)
    if possible < count:
        raise InputError(f"{n} samples allow {possible} choices of {size} anchors, {count} slices were asked for")
    slices: list[Slice] = []
    failure: InputError | None = None
    for chosen in _different_draws(n, size, 100 + 20 * count, seed):
        try:
            slices.append(build(chosen, len(slices)))
        except InputError as error:
            failure = error
        if len(slices) == count:
            return slices
    last = f"; the last failure: {failure}" if failure is not None else "; too few different draws"
    raise InputError(f"only {len(slices)} of {count} slices could be made from random anchors{last}")


def _different_draws(n: int, size: int, attempts: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Draw ``size`` different indices of ``range(n)``, never the same set twice."""
    generator = _generator(seed)
    seen: set[frozenset[int]] = set()
    for _ in range(attempts):
        chosen = tuple(int(i) for i in generator.choice(n, size, replace=False))
        if frozenset(chosen) not in seen:
            seen.add(frozenset(chosen))
            yield chosen


def _given_anchors(anchors: Sequence[int], kind: Kind, n: int) -> tuple[int, ...]:
    wanted = _ANCHORS_OF_KIND[kind]
    if len(anchors) != wanted:
        raise InputError(f"a slice of kind {kind!r} takes {wanted} anchor(s), got {len(anchors)}: {list(anchors)}")
    chosen = tuple(_index(i, n) for i in anchors)
    if len(set(chosen)) != len(chosen):
        raise InputError(f"anchors must be different data points, got {list(chosen)}")
    return chosen


def _through_rows(samples: NDArray[Any], chosen: tuple[int, ...], half_width: float | None) -> Slice:
    return _through(tuple(samples[i] for i in chosen), tuple(f"data point {i}" for i in chosen), half_width)


def _through(points: tuple[ArrayLike, ...], names: tuple[str, ...], half_width: float | None) -> Slice:
    vectors = [_vector(point, f"anchor {name}") for point, name in zip(points, names)]
    sizes = [x.size for x in vectors]
    if len(set(sizes)) != 1:
        raise InputError(f"anchors must have the same size, got {dict(zip(names, sizes))}")
    _check_dimension(sizes[0])
    _check_spread(vectors, names)
    x0, x1, x2 = vectors
    u, v = _orthonormal_pair(x1 - x0, x2 - x0)
    origin = np.mean(vectors, axis=0)
    anchors = (np.stack(vectors) - origin) @ np.stack([u, v], axis=1)
    width = _ANCHOR_MARGIN * float(np.abs(anchors).max()) if half_width is None else half_width
    return Slice(origin, u, v, width, anchors, "plane through three points")


def _check_spread(vectors: Sequence[Array], names: tuple[str, ...]) -> None:
    """Raise if two of three points are equal or all lie on a line, relative to their size and to the rounding in it."""
    sides = {(i, j): _length(vectors[j] - vectors[i]) for i, j in ((0, 1), (0, 2), (1, 2))}
    size = max(_length(x) for x in vectors)
    scale = max(size, *sides.values())
    for (i, j), side in sides.items():
        if side <= DEGENERATE_TOLERANCE * scale:
            raise InputError(
                f"anchors {names[i]} and {names[j]} are equal (distance {side:.3g}, up to {DEGENERATE_TOLERANCE:g} "
                f"relative), so the three anchors span no plane; choose another anchor"
            )
    a, b = vectors[1] - vectors[0], vectors[2] - vectors[0]
    u = a / _length(a)
    height = _length(b - (u @ b) * u)
    # The differences carry the rounding of the coordinates, so a height below it says nothing.
    if height <= max(DEGENERATE_TOLERANCE * max(sides.values()), 4.0 * float(np.finfo(np.float64).eps) * size):
        raise InputError(
            f"anchors {names[0]}, {names[1]} and {names[2]} lie on a line (the third is {height:.3g} off it, up to "
            f"{DEGENERATE_TOLERANCE:g} relative), so they span no plane; choose another anchor"
        )


def _orthonormal_pair(a: Array, b: Array) -> tuple[Array, Array]:
    """Gram-Schmidt of b against a, repeated: one pass loses digits when b is nearly along a, the next restores them."""
    u = _unit(a)
    v = _unit(b)
    for _ in range(3):
        v = _unit(v - (u @ v) * u)
    return u, v


def _unit(x: Array) -> Array:
    """x / ||x||, scaled first so that no square vanishes, and divided twice to end within rounding of length 1."""
    y = x / np.abs(x).max()
    y = y / np.linalg.norm(y)
    unit: Array = y / np.linalg.norm(y)
    return unit


def _length(x: Array) -> float:
    """Euclidean norm, without overflow or underflow of the squares."""
    largest = float(np.abs(x).max())
    return largest * float(np.linalg.norm(x / largest)) if largest > 0.0 else 0.0


def _nearest_neighbours(samples: NDArray[Any], labels: NDArray[np.int64], index: int) -> tuple[int, int]:
    """Indices of the nearest point of another class and of the nearest of the same class, duplicates passed over."""
    squares = _squared_distances(samples, index)
    squares[squares == 0.0] = np.inf  # the point itself and its duplicates
    found = []
    for mask, what in ((labels != labels[index], "another class"), (labels == labels[index], "its own class")):
        candidates = np.where(mask, squares, np.inf)
        nearest = int(candidates.argmin())
        if not np.isfinite(candidates[nearest]):
            raise InputError(
                f"data point {index} of class {labels[index]} has no different point of {what}; choose another anchor"
            )
        found.append(nearest)
    return found[0], found[1]


def _squared_distances(samples: NDArray[Any], index: int) -> Array:
    """Squared Euclidean distances of all samples to one, in float64, a chunk at a time to spare memory; [n]."""
    centre = _vector(samples[index], f"data point {index}")
    squares = np.empty(len(samples))
    rows = max(1, _CHUNK_ENTRIES // max(1, centre.size))
    for start in range(0, len(samples), rows):
        difference = _array(samples[start : start + rows], "data points") - centre
        squares[start : start + rows] = np.einsum("nd,nd->n", difference, difference)
    return squares


def _check_axes(origin: Array, u: Array, v: Array) -> None:
    if not origin.size == u.size == v.size:
        raise InputError(f"slice origin, u and v must have one length, got {origin.size}, {u.size} and {v.size}")
    _check_dimension(origin.size)
    axes = np.stack([u, v])
    gram = axes @ axes.T
    if not np.abs(gram - np.eye(2)).max() <= ORTHONORMAL_TOLERANCE:
        rows = [[float(f"{entry:.12g}") for entry in row] for row in gram]
        raise InputError(
            f"slice axes must be orthonormal to {ORTHONORMAL_TOLERANCE:g}, but their Gram matrix is {rows}; "
            f"orthonormalise u and v, or build the slice with Slice.through"
        )


def _check_dimension(d: int) -> None:
    check_whole("dimension of a slice's input space", d, 2)


def _check_keys(arrays: dict[str, NDArray[np.generic]], path: Path) -> None:
    needed, optional = {"origin": 1, "u": 1, "v": 1, "half_width": 0}, {"anchors": 2, "description": 0}
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise InputError(
            f"slice file {path} must hold the keys {', '.join(needed)} (and may hold {', '.join(optional)}), "
            f"but {', '.join(missing)} is missing; it holds {', '.join(arrays) or 'nothing'}"
        )
    for key, ndim in (needed | optional).items():
        if key in arrays and arrays[key].ndim != ndim:
            shape = list(arrays[key].shape)
            raise InputError(f"slice file {path}: {key} must have {ndim} dimension(s), got shape {shape}")


def _numpy(values: Any, what: str) -> NDArray[Any]:
    """An array of real numbers, not copied where that is possible."""
    if hasattr(values, "detach"):  # a tensor, possibly on a device, with a gradient, or in a type numpy lacks
        values = values.detach().cpu()
        values = (values.float() if values.dtype.itemsize == 2 and values.is_floating_point() else values).numpy()
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be numbers in a regular array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} must be real numbers, got an array of {array.dtype}")
    return array


def _array(values: Any, what: str) -> Array:
    """A float64 copy of an array or tensor, all of whose entries are finite and small enough to be squared."""
    array = _numpy(values, what).astype(np.float64)
    bad = ~(np.abs(array) <= _LARGEST_ENTRY)
    if bad.any():
        raise InputError(
            f"{what} must be finite and at most {_LARGEST_ENTRY:g} in size; {int(bad.sum())} of {array.size} entries "
            f"are not, the first is {array[bad][0]}"
        )
    return array


def _vector(values: Any, what: str) -> Array:
    return _array(values, what).reshape(-1)


def _samples(values: Any) -> NDArray[Any]:
    """Samples as rows, [n, d], in the type they came in: only the rows that are used are converted and checked."""
    array = _numpy(values, "data points")
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"data points must have shape [n, ...] with n >= 1, got {list(array.shape)}")
    return array.reshape(len(array), -1)


def _labels(values: Any, n: int) -> NDArray[np.int64]:
    labels = _numpy(values, "class labels")
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise InputError(f"class labels must be {n} whole numbers, got shape {list(labels.shape)} of {labels.dtype}")
    return labels.astype(np.int64)


def _anchor_coordinates(anchors: Any) -> Array:
    array = np.empty((0, 2)) if anchors is None else _array(anchors, "anchor coordinates")
    if array.ndim != 2 or array.shape[1] != 2:
        raise InputError(f"anchor coordinates must have shape [k, 2], got {list(array.shape)}")
    return array


def _positive(half_width: Any) -> float:
    try:
        value = float(half_width)
    except (TypeError, ValueError):
        value = math.nan
    if not 1.0 / _LARGEST_ENTRY <= value <= _LARGEST_ENTRY:
        raise InputError(f"half-width must be a positive finite number, got {half_width!r}")
    return value


def _index(index: Any, n: int) -> int:
    check_whole("index of a data point", index, 0, n - 1)
    return int(index)


def _resolution(res: Any) -> int:
    check_whole("resolution", res, 1, of="pixels")
    return int(res)


def _generator(seed: Any) -> np.random.Generator:
    check_whole("seed", seed, 0, math.inf)
    return np.random.Generator(np.random.PCG64(int(seed)))
