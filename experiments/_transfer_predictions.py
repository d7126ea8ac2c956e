"""Class probabilities that a network gave, on its own coarse grid, with the true labels of every pixel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from experiments import _segmentation_net as segmentation
from ua import metrics
from ua.datasets import Sample, shared, to_image

VOC_SIZE = (448, 448)  # to which the authors resized the image before their network saw it
DOG = 12  # the map calls some background other things, so that it is judged on the dog
CAR = 1
TRAINED_ON, TESTED_ON = range(0, 4), range(4, 8)  # frames of the car


@dataclass(frozen=True, eq=False)
class Prediction:
    """A prediction and what it should have been.

    Attributes:
        name: unique.
        group: predictions whose scores are averaged.
        image: (3, H, W) float32 in [0, 1].
        probabilities: (C, h, w) float32, sums of 1 over the classes.
        labels: (H, W) int64, -1 for void.
        judged: classes whose IoU is averaged.
        scale: HR pixels per cell.
    """

    name: str
    group: str
    image: Tensor
    probabilities: Tensor
    labels: Tensor
    judged: tuple[int, ...]
    scale: int


def load(split: str | None, root: str | os.PathLike[str] | None, seed: int) -> list[Prediction]:
    """The predictions of a split; networks are trained here, in some ten seconds each.

    Args:
        split: "dev" (the right half of an aerial image), "test" (the authors' map of a dog, four frames of a car, the
            right half of a microscope image), or None for both.
        root: the folder of the shared samples; None: UA_DATA.
        seed: of the networks.

    Raises:
        FileNotFoundError: the folder or a file is not there.
    """
    folder = shared.data_root(root)
    dev = [halves(shared.load(folder, ["potsdam_2_10"], None)[0], seed)] if split != "test" else []
    if split == "dev":
        return dev
    microscope = halves(shared.load(folder, ["em_membrane_0"], None)[0], seed)
    return [*dev, authors(folder), *cars(folder, seed), microscope]


def authors(root: Path) -> Prediction:
    """The map that the authors of the method published with their code."""
    image = to_image(shared.array(root, "official/2009_003810.jpg"))[None]
    labels = torch.from_numpy(shared.array(root, "voc/2009_003810_gt.png").copy())[None, None]
    resized = functional.interpolate(image, VOC_SIZE, mode="bilinear", antialias=True, align_corners=False)[0]
    nearest = functional.interpolate(labels.float(), VOC_SIZE, mode="nearest-exact")[0, 0].long()
    probabilities = torch.from_numpy(shared.array(root, "official/2009_003810_predlow_probs.npy").copy())
    return Prediction(
        "voc_2009_003810_authors",
        "dog (authors)",
        resized.clamp(0, 1),
        probabilities,
        nearest.masked_fill(nearest == 255, -1),
        (DOG,),
        VOC_SIZE[0] // probabilities.shape[-1],
    )


def cars(root: Path, seed: int) -> list[Prediction]:
    """A network trained on four frames of a video, and its view of the next four."""
    samples = [shared.davis_frame(number, root) for number in TRAINED_ON]
    net = segmentation.train(
        [sample.image for sample in samples], [_labels(sample) for sample in samples], 2, seed=seed
    )
    return [_predict(net, shared.davis_frame(number, root), "car", (CAR,)) for number in TESTED_ON]


def halves(sample: Sample, seed: int) -> Prediction:
    """A network trained on the left half of an image, and its view of the right one."""
    middle = sample.image.shape[-1] // 2 // segmentation.STRIDE * segmentation.STRIDE
    labels = _labels(sample)
    net = segmentation.train([sample.image[..., :middle]], [labels[:, :middle]], sample.num_classes, seed=seed)
    right = Sample(
        sample.name,
        sample.image[..., middle:].contiguous(),
        labels=labels[:, middle:].contiguous(),
        num_classes=sample.num_classes,
    )
    return _predict(net, right, sample.group or sample.name, tuple(range(sample.num_classes)))


def score(prediction: Prediction, probabilities: Tensor) -> dict[str, float]:
    """Mean IoU of the judged classes, in the image and within 5 pixels of a true boundary; probabilities (C, H, W)."""
    classes, truth = probabilities.argmax(0), prediction.labels.to(probabilities.device)
    near = truth.masked_fill(~metrics.boundary_band(truth), -1)
    count, judged = len(probabilities), list(prediction.judged)
    return {
        "iou": metrics.class_iou(classes, truth, count)[judged].nanmean().item(),
        "band_iou": metrics.class_iou(classes, near, count)[judged].nanmean().item(),
    }


def _predict(net: segmentation.SegmentationNet, sample: Sample, group: str, judged: tuple[int, ...]) -> Prediction:
    return Prediction(
        f"{sample.name}_network",
        group,
        sample.image,
        segmentation.predict(net, sample.image),
        _labels(sample),
        judged,
        segmentation.STRIDE,
    )


def _labels(sample: Sample) -> Tensor:
    if sample.labels is None:
        raise ValueError(f"{sample.name} has no labels to learn from")
    return sample.labels
