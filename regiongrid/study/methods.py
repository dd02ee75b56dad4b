"""The training methods: an encoder with the heads that its loss needs.

Heads are small: a hidden layer of ``head_width`` (128) with batch-norm and ReLU, and an output of ``head_out`` (64). No
head has batch-norm behind its output, where SimSiam's has: there it keeps up the spread of the embeddings by itself,
and without stop-gradient the network does not collapse (measured: effective rank of the features 12 with it, 3 without
it). Each view goes through the heads as a batch of its own. The heads of moco and dino have batch-norm too, unlike
those of their papers: with so small an encoder they are better off (kNN on Fashion-MNIST .78 and .77 with it, .74 and
.72 without).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regiongrid.study import losses
from regiongrid.study.config import StudyConfig
from regiongrid.study.encoders import encoder_of, feature_size
from regiongrid.study.images import Images

DINO_PROTOTYPES = 256
DINO_STUDENT_TEMPERATURE = 0.1
DINO_TEACHER_TEMPERATURE = 0.04
DINO_CENTRE_DECAY = 0.9


class Method(nn.Module):
    """An encoder, the heads on top of it, and the loss.

    Attributes
    ----------
    encoder
        From images to features.
    head
        From features to what the loss sees.
    views
        Random views of each image that a step takes.
    """

    views = 2

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    @property
    def projection(self) -> nn.Module:
        """The part of the head that is piecewise linear: all of it, if a method does not say otherwise."""
        return self.head

    def network(self, with_head: bool = False) -> nn.Module:
        """The encoder alone, or followed by `projection`; it shares its parameters with this method."""
        return nn.Sequential(self.encoder, self.projection) if with_head else self.encoder

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch.

        Parameters
        ----------
        images : [views * B, 1, height, width]
            First views of all B images, then second views.
        labels : [B]
            Classes; only ``supervised`` looks at them.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """What is to be done behind a step of the optimizer: slow copies, queues."""

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings of both views, [B, head_out] each."""
        first, second = self.encoder(images).chunk(2)
        return self.head(first), self.head(second)


class Supervised(Method):
    """Cross-entropy of a linear classifier on the features."""

    views = 1

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.encoder(images)), labels)


class SimClr(Method):
    """Contrast with the other images of the batch."""

    def __init__(self, encoder: nn.Module, features: int, config: StudyConfig) -> None:
        super().__init__(encoder, _head(features, config))
        self.temperature = config.temperature

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return losses.nt_xent(*self.embed(images), self.temperature)


class _WithTeacher(Method):
    """A method with a slow copy of encoder and head: at each step w' <- decay w' + (1 - decay) w."""

    def __init__(self, encoder: nn.Module, head: nn.Module, decay: float) -> None:
        super().__init__(encoder, head)
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.teacher = AveragedModel(nn.Sequential(encoder, head), multi_avg_fn=average)
        self.teacher.requires_grad_(False)
        self.teacher.update_parameters(self._student())  # the first call copies whatever the decay is

    def after_step(self) -> None:
        self.teacher.update_parameters(self._student())

    def _student(self) -> nn.Module:
        return nn.Sequential(self.encoder, self.head)

    @torch.no_grad()
    def _taught(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's embeddings of both views."""
        slow = self.teacher.module
        assert isinstance(slow, nn.Sequential)
        slow_encoder, slow_head = slow
        first, second = slow_encoder(images).chunk(2)
        return slow_head(first), slow_head(second)


class Moco(_WithTeacher):
    """Contrast of one view with the slow copy's embeddings of the other view and of earlier images.

    The queue starts with random directions. Both views are the query once; the second views' keys are remembered.
    """

    queue: Tensor

    def __init__(self, encoder: nn.Module, features: int, config: StudyConfig) -> None:
        super().__init__(encoder, _head(features, config), config.ema_decay)
        self.temperature = config.temperature
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, config.head_out), dim=1))
        self._keys: Tensor | None = None

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        first, second = self.embed(images)
        first_key, second_key = self._taught(images)
        self._keys = F.normalize(second_key, dim=1)
        ahead = losses.info_nce(first, second_key, self.queue, self.temperature)
        return (ahead + losses.info_nce(second, first_key, self.queue, self.temperature)) / 2

    def after_step(self) -> None:
        super().after_step()
        if self._keys is not None:
            self.queue = torch.cat([self._keys, self.queue])[: len(self.queue)]
            self._keys = None


class Byol(_WithTeacher):
    """A predictor of one view's embedding by the slow copy from that of the other view (Grill et al. 2020)."""

    def __init__(self, encoder: nn.Module, features: int, config: StudyConfig) -> None:
        super().__init__(encoder, _head(features, config), config.ema_decay)
        self.predictor = _head(config.head_out, config)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        first, second = self.embed(images)
        first_target, second_target = self._taught(images)
        ahead = losses.negative_cosine(self.predictor(first), second_target)
        return 2 + ahead + losses.negative_cosine(self.predictor(second), first_target)


class ByolNoPredictor(Method):
    """BYOL with neither predictor nor slow teacher: the target is the network's own embedding, without gradient.

    Its loss is symmetric in the views, so the gradient is half of that without the stop: nothing is left that keeps
    the network from giving all images one embedding.
    """

    def __init__(self, encoder: nn.Module, features: int, config: StudyConfig) -> None:
        super().__init__(encoder, _head(features, config))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        first, second = self.embed(images)
        ahead = losses.negative_cosine(first, second.detach())
        return 2 + ahead + losses.negative_cosine(second, first.detach())


class SimSiam(Method):
    """A predictor of one view's embedding from that of the other, which is a constant to the gradient."""

    stop_gradient = True

    def __init__(self, encoder: nn.Module, features: int, config: StudyConfig) -> None:
        super().__init__(encoder, _head(features, config))
        self.predictor = _head(config.head_out, config)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        first, second = self.embed(images)
        first_target, second_target = (first.detach(), second.detach()) if self.stop_gradient else (first, second)
        ahead = losses.negative_cosine(self.predictor(first), second_target)
        return (ahead + losses.negative_cosine(self.predictor(second), first_target)) / 2


class SimSiamNoStopGradient(SimSiam):
    """SimSiam whose targets are no constants: both sides of the loss move, towards one embedding of all images."""

    stop_gradient = False


class Dino(_WithTeacher):
    """The slow copy's distribution over prototypes, centred and sharpened, is the target; two global views.

    Prototypes and embeddings have length 1. The centre is a moving average of the teacher's outputs.
    """

    centre: Tensor

    def __init__(self, encoder: nn.Module, features: int, config: StudyConfig) -> None:
        head = _head(features, config)
        super().__init__(encoder, nn.Sequential(head, Prototypes(config.head_out)), config.ema_decay)
        self.register_buffer("centre", torch.zeros(DINO_PROTOTYPES))

    @property
    def projection(self) -> nn.Module:
        """The head without its prototypes, to which embeddings of length 1 are compared."""
        assert isinstance(self.head, nn.Sequential)
        return self.head[0]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        first, second = self.embed(images)
        first_target, second_target = self._taught(images)
        temperatures = DINO_STUDENT_TEMPERATURE, DINO_TEACHER_TEMPERATURE
        ahead = losses.dino(first, second_target, self.centre, *temperatures)
        loss = (ahead + losses.dino(second, first_target, self.centre, *temperatures)) / 2
        mean = torch.cat([first_target, second_target]).mean(dim=0)
        self.centre = DINO_CENTRE_DECAY * self.centre + (1 - DINO_CENTRE_DECAY) * mean
        return loss


class Prototypes(nn.Module):
    """Cosines between embeddings [B, n] and K learned directions, [B, K]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(DINO_PROTOTYPES, size))

    def forward(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings, dim=1) @ F.normalize(self.weight, dim=1).T


def initial_method(config: StudyConfig, images: Images) -> Method:
    """The method of a run as its seed draws it; torch's global generator is left as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        encoder = encoder_of(config, images.shape)
        return make_method(config, encoder, feature_size(encoder, images.shape), images.classes)


def make_method(config: StudyConfig, encoder: nn.Module, features: int, classes: int) -> Method:
    """The method of a run around an encoder; heads get torch's default initial weights, from its global generator."""
    if config.method == "supervised":
        return Supervised(encoder, nn.Linear(features, classes))
    return _METHODS[config.method](encoder, features, config)


def _head(size: int, config: StudyConfig) -> nn.Sequential:
    """size - head_width - head_out; a bias in front of batch-norm would have no effect."""
    return nn.Sequential(
        nn.Linear(size, config.head_width, bias=False),
        nn.BatchNorm1d(config.head_width),
        nn.ReLU(),
        nn.Linear(config.head_width, config.head_out),
    )


_METHODS: dict[str, Callable[[nn.Module, int, StudyConfig], Method]] = {
    "simclr": SimClr,
    "moco": Moco,
    "byol": Byol,
    "simsiam": SimSiam,
    "dino": Dino,
    "simsiam-no-stop-gradient": SimSiamNoStopGradient,
    "byol-no-predictor": ByolNoPredictor,
}
