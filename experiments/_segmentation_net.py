"""A small segmentation network of stride 16, trained here: class probabilities that are really a network's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from ua.degrade import area, one_hot

STRIDE = 16
STAGES = ((24, 7, 4), (48, 3, 2), (96, 3, 2))  # channels, kernel and stride of the convolutions that reduce the size
CROP = 224  # side of a training crop, pixels, or less where the image is smaller
BATCH = 4
STEPS = 300
LEARNING_RATE = 3e-3


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine's number of cores; so small a network gains nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SegmentationNet(nn.Module):
    """Three strided convolutions, two with gaps, and class scores for every cell of 16 x 16 pixels.

    Args:
        num_classes: at least 2.
        channels: of the image.
    """

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, kernel, stride in STAGES:
            convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2)
            layers += [convolution, nn.GroupNorm(8, width), nn.ReLU()]
            channels = width
        for dilation in (1, 2):
            convolution = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
            layers += [convolution, nn.GroupNorm(8, channels), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, H, W) in [0, 1], H and W multiples of 16, to logits (B, num_classes, H / 16, W / 16)."""
        logits: Tensor = self.layers(image - 0.5)
        return logits


def train(
    images: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int, *, seed: int, steps: int = STEPS
) -> SegmentationNet:
    """A network fitted to a few images by random crops and flips; deterministic by seed on one machine.

    Its targets are the shares of the classes in every cell; void pixels do not count.

    Args:
        images: each (3, H, W) float in [0, 1], at least 16 x 16.
        labels: each (H, W) int64, -1 for void.
        num_classes: at least 2.
        seed: of weights, crops and flips. The global random state is left as it was.
        steps: of AdamW, each on a batch of four crops; its learning rate falls to zero by a cosine.

    Raises:
        ValueError: no images, images and labels of other numbers or sizes, or steps below 1.
    """
    if not images or [image.shape[-2:] for image in images] != [label.shape for label in labels]:
        raise ValueError(f"images and labels must be as many and of one size, got {len(images)} and {len(labels)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    truths = [_shares(image, label, num_classes) for image, label in zip(images, labels, strict=True)]
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), one_thread():
        torch.manual_seed(seed)
        net = SegmentationNet(num_classes)
        adam = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            batch, shares, weights = zip(*(_crop(*_pick(truths)) for _ in range(BATCH)), strict=True)
            logs = functional.log_softmax(net(torch.stack(batch)), dim=1)
            weight = torch.stack(weights)
            loss = -((torch.stack(shares) * logs).sum(1) * weight).sum() / weight.sum().clamp(min=1)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            schedule.step()
    return net.eval()


def predict(net: SegmentationNet, image: Tensor) -> Tensor:
    """Class probabilities (num_classes, H / 16, W / 16) of an image (3, H, W) with sides that are multiples of 16."""
    with torch.no_grad(), one_thread():
        return net(image[None]).softmax(1)[0]


def _shares(image: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The image cut to whole cells, the share of every class in each of them, and 1 where there is a share."""
    rows, columns = image.shape[-2] // STRIDE, image.shape[-1] // STRIDE
    image, labels = image[:, : rows * STRIDE, : columns * STRIDE], labels[: rows * STRIDE, : columns * STRIDE]
    maps, valid = one_hot(labels, num_classes)
    shares, known = area(maps, (rows, columns), valid)
    return image, shares, known.float()


def _pick(truths: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    return truths[int(torch.randint(len(truths), ()))]


def _crop(image: Tensor, shares: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A random crop of whole cells in the size of all crops, mirrored half of the time, its brightness varied."""
    cells = CROP // STRIDE
    rows, columns = min(cells, weight.shape[0]), min(cells, weight.shape[1])
    top = int(torch.randint(weight.shape[0] - rows + 1, ()))
    left = int(torch.randint(weight.shape[1] - columns + 1, ()))
    y, x = slice(top, top + rows), slice(left, left + columns)
    image = image[:, top * STRIDE : (top + rows) * STRIDE, left * STRIDE : (left + columns) * STRIDE]
    parts = (image * (0.8 + 0.4 * torch.rand(())), shares[:, y, x], weight[y, x])
    flipped = bool(torch.rand(()) < 0.5)
    return tuple(part.flip(-1) if flipped else part for part in parts)  # type: ignore[return-value]
