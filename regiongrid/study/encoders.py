"""The networks that are measured: small encoders of grey images, in [N, 1, height, width], out [N, features].

An encoder ends behind the ReLU of its last layer: 784-128-128-128 is three layers of 128 units that bend, as the
backbone of a larger model ends behind its last ReLU, and a classifier on top has the regions of its encoder.
``linear_features`` leaves out that last ReLU.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from regiongrid.errors import InputError
from regiongrid.study.config import ENCODERS

_MLP_WIDTHS = {"mlp-32x3": (32, 32, 32), "mlp-128x3": (128, 128, 128)}
_CNN_CHANNELS = (4, 8)
_CNN_FEATURES = 64


def make_encoder(name: str = "mlp-128x3", pixels: int = 28, linear_features: bool = False) -> nn.Sequential:
    """An encoder with torch's default initial weights, drawn from torch's global generator.

    It is also the factory for loading a kept encoder: ``regiongrid estimate --ckpt RUN/encoder.pt --model
    regiongrid.study.encoders:make_encoder --model-arg name=mlp-128x3 --input-shape 1,28,28``.

    Parameters
    ----------
    name
        ``mlp-32x3`` and ``mlp-128x3``: three fully connected layers. ``cnn``: two 3x3 convolutions of stride 2 (4 and
        8 channels) and a fully connected layer of 64. ReLU everywhere, biases everywhere, no batch-norm.
    pixels
        Height and width of the images.
    linear_features
        Without the last ReLU.

    Raises
    ------
    InputError
        There is no encoder of that name.
    """
    if name not in ENCODERS:
        raise InputError(f"encoder is {name!r}; it must be one of {', '.join(ENCODERS)}")
    parts = _cnn(pixels) if name == "cnn" else _mlp((pixels * pixels, *_MLP_WIDTHS[name]))
    return nn.Sequential(*(parts[:-1] if linear_features else parts))


def feature_size(encoder: nn.Sequential) -> int:
    """Width of the features: that of the last fully connected layer."""
    last = [part for part in encoder if isinstance(part, nn.Linear)][-1]
    return last.out_features


def _mlp(widths: tuple[int, ...]) -> list[nn.Module]:
    layers = ((nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(widths))
    return [nn.Flatten(), *(part for layer in layers for part in layer)]


def _cnn(pixels: int) -> list[nn.Module]:
    first, second = _CNN_CHANNELS
    side = math.ceil(pixels / 4)  # a convolution of stride 2 with padding 1 halves the side, rounded up
    return [
        nn.Conv2d(1, first, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * side * side, _CNN_FEATURES),
        nn.ReLU(),
    ]
