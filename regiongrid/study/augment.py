"""Random views of grey images: crop and resize, turn, mirror where that keeps the class, brightness, noise.

A crop, a turn and a mirroring are one affine map, so the image is interpolated once. Parameters and noise come from a
generator of the run, so that a resumed run sees the views that it would have seen. (kornia's augmentations draw from
torch's global generator and interpolate once for each of the steps; for 512 images of 28x28 they take 38 ms on one core
where this takes 7.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Views:
    """How far a view may be from its image.

    Attributes
    ----------
    area : (float, float)
        Share of the image's area that a crop has, uniform.
    aspect : (float, float)
        Width over height of a crop, log-uniform.
    turn
        Largest angle, degrees, uniform in both directions.
    mirror
        Whether half of the views are mirrored left to right.
    brightness : (float, float)
        The factor of all pixels, uniform.
    noise
        Standard deviation of the Gaussian noise of each pixel.
    """

    area: tuple[float, float] = (0.6, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    turn: float = 15.0
    mirror: bool = False
    brightness: tuple[float, float] = (0.6, 1.4)
    noise: float = 0.05

    def maps(self, count: int, generator: torch.Generator) -> Tensor:
        """Random affine maps [count, 2, 3] from places in a view to places in its image, both in [-1, 1]^2.

        A crop of relative width w and height h around the centre c, turned by t and mirrored by s = 1 or -1, is
        c + R(t) diag(s w, h) p. The centre is uniform where the crop before its turn is inside the image; a crop wider
        than the image is cut to its width.
        """
        area, aspect, angle, across, down, side = torch.rand(6, count, generator=generator)
        low, high = self.area
        shape = torch.exp(_between(aspect, math.log(self.aspect[0]), math.log(self.aspect[1])))
        scale = low + (high - low) * area
        width, height = (scale * shape).sqrt().clamp(max=1), (scale / shape).sqrt().clamp(max=1)
        turn = _between(angle, -math.radians(self.turn), math.radians(self.turn))
        signed = torch.where(side < 0.5, -width, width) if self.mirror else width
        rows = (
            torch.stack([turn.cos() * signed, -turn.sin() * height, (1 - width) * (2 * across - 1)], dim=1),
            torch.stack([turn.sin() * signed, turn.cos() * height, (1 - height) * (2 * down - 1)], dim=1),
        )
        return torch.stack(rows, dim=1)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each image, [N, 1, height, width] both; what lies outside an image is 0."""
        seen = warp(images, self.maps(len(images), generator))
        factor = _between(torch.rand(len(images), 1, 1, 1, generator=generator), *self.brightness)
        noise = torch.randn(images.shape, generator=generator)
        return seen.mul_(factor).add_(noise, alpha=self.noise)


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Images [N, 1, h, w] seen through affine maps [N, 2, 3] of the coordinates in [-1, 1]^2, interpolated linearly.

    -1 and 1 are the outer edges of the first and the last pixel.
    """
    height, width = images.shape[-2:]
    x, y = _centres(width), _centres(height)[:, None]
    a, b, c = maps[:, :, None, None, :].unbind(-1)  # [N, 2, 1, 1] each
    grid = a * x + (b * y + c)  # [N, 2, h, w]; torch's affine_grid takes three times as long
    return F.grid_sample(images, grid.movedim(1, -1), align_corners=False)


def _centres(count: int) -> Tensor:
    return (torch.arange(count) * 2 + 1) / count - 1


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform
