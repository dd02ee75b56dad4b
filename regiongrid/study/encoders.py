"""The networks that are measured: small encoders of images, in [N, channels, height, width], out [N, features].

An encoder ends behind the ReLU of its last layer: 784-128-128-128 is three layers of 128 units that bend, as the
backbone of a larger model ends behind its last ReLU, and a classifier on top has the regions of its encoder.
``linear_features`` leaves out that last ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from regiongrid.errors import InputError
from regiongrid.monitoring.undisturbed import evaluating
from regiongrid.network.checkpoint import make_model
from regiongrid.study.config import ENCODERS, StudyConfig
from regiongrid.study.images import Images

_MLP_WIDTHS = {"mlp-32x3": (32, 32, 32), "mlp-128x3": (128, 128, 128)}
_CNN_CHANNELS = (4, 8)
_CNN_FEATURES = 64
_FINGERPRINT = 32


def make_encoder(
    name: str = "mlp-128x3", shape: Sequence[int] = (1, 28, 28), linear_features: bool = False
) -> nn.Sequential:
    """An encoder with torch's default initial weights, drawn from torch's global generator.

    It is also the factory for loading a kept encoder: ``regiongrid estimate --ckpt RUN/encoder.pt --model
    regiongrid.study.encoders:make_encoder --model-arg name=mlp-128x3 --input-shape 1,28,28``.

    Parameters
    ----------
    name
        ``mlp-32x3`` and ``mlp-128x3``: three fully connected layers. ``cnn``: two 3x3 convolutions of stride 2 (4 and
        8 channels) and a fully connected layer of 64. ReLU everywhere, biases everywhere, no batch-norm.
    shape : [channels, height, width]
        Of one image.
    linear_features
        Without the last ReLU.

    Raises
    ------
    InputError
        There is no encoder of that name.
    """
    if name not in ENCODERS:
        raise InputError(f"encoder is {name!r}; it must be one of {', '.join(ENCODERS)}")
    parts = _cnn(*shape) if name == "cnn" else _mlp((math.prod(shape), *_MLP_WIDTHS[name]))
    return nn.Sequential(*(parts[:-1] if linear_features else parts))


def encoder_of(config: StudyConfig, shape: Sequence[int]) -> nn.Module:
    """The encoder of a run, its own if it names one: then its code is run.

    Raises
    ------
    InputError
        It cannot be made.
    """
    if config.encoder in ENCODERS:
        return make_encoder(config.encoder, shape, config.linear_features)
    return make_model(config.encoder)


def feature_size(encoder: nn.Module, shape: Sequence[int]) -> int:
    """The number of features of an image.

    Raises
    ------
    InputError
        The encoder does not take images of that shape, or what it makes of them is not [N, features].
    """
    with torch.no_grad(), evaluating(encoder):
        try:
            features = encoder(torch.zeros(2, *shape))
        except Exception as error:  # it may be the user's code
            raise InputError(
                f"the encoder does not take images [2, {', '.join(map(str, shape))}]: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"the encoder must make features [2, n] of two images, it made {got}; flatten them at its end")
    return features.shape[1]


def fingerprint(encoder: nn.Module, images: Images) -> list[float]:
    """A few features of the first test image: another function has others."""
    with torch.no_grad(), evaluating(encoder):
        return [float(value) for value in encoder(images.test_x[:1])[0, :_FINGERPRINT]]


def check_fingerprint(encoder: nn.Module, images: Images, recorded: Sequence[float] | None) -> None:
    """Raise `InputError` unless an encoder as its seed draws it is the one whose `fingerprint` was recorded."""
    if recorded is None:
        return
    found = fingerprint(encoder, images)
    if len(found) != len(recorded) or not np.allclose(found, recorded, rtol=1e-3, atol=1e-5):
        raise InputError(
            "its encoder makes other features of an image than when the run began: its code has changed, or the torch "
            "that draws its weights; bring them back, or run it again elsewhere"
        )


def _mlp(widths: tuple[int, ...]) -> list[nn.Module]:
    layers = ((nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(widths))
    return [nn.Flatten(), *(part for layer in layers for part in layer)]


def _cnn(channels: int, height: int, width: int) -> list[nn.Module]:
    first, second = _CNN_CHANNELS
    places = math.ceil(height / 4) * math.ceil(width / 4)  # stride 2 with padding 1 halves a side, rounded up
    return [
        nn.Conv2d(channels, first, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * places, _CNN_FEATURES),
        nn.ReLU(),
    ]
