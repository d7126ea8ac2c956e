"""Quality measures. Each score is a Python float; every leading dimension is pooled.

Args (of every function):
    prediction, truth: continuous maps (C, H, W) or (B, C, H, W); label maps (H, W) or (B, H, W), integers.
    valid: bool (H, W) or (B, H, W), the pixels whose truth is known; what lies outside it is never read.
    num_classes: labels are 0 to num_classes - 1.
    ignore: the label of pixels without a truth.

Raises (every function):
    TypeError: a wrong type. ValueError: shapes that do not match, values that are not finite where they count, labels
    out of range, and a mask that leaves nothing to measure.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SSIM_WINDOW = 11  # what sigma 1.5 truncated at 3.5 sigma gives: Wang et al. 2004


def psnr(prediction: Tensor, truth: Tensor, valid: Tensor | None = None, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, `10 log10(data_range^2 / MSE)`; `inf` for identical images.

    `data_range` is the largest possible difference, > 0. Source: the usual definition, e.g. Huynh-Thu and Ghanbari,
    "Scope of validity of PSNR", 2008.
    """
    _positive("data_range", data_range)
    predicted, true = _known(prediction, truth, valid)
    error = (predicted - true).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(prediction: Tensor, truth: Tensor, data_range: float = 1.0) -> float:
    """Mean structural similarity in [-1, 1], averaged over channels and images.

    Images must be at least 11 x 11. Source: Wang et al., "Image quality assessment: from error visibility to structural
    similarity", 2004, as scikit-image's `structural_similarity` computes it with the paper's Gaussian window (11 x 11,
    sigma 1.5).
    """
    from skimage.metrics import structural_similarity

    _positive("data_range", data_range)
    _same_shape(prediction, truth)
    if min(truth.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"ssim needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {tuple(truth.shape)}"
        )
    predicted, true = _known(prediction, truth, None)
    planes = (-1, *truth.shape[-2:])
    values = [
        structural_similarity(
            a, b, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(predicted.reshape(planes).cpu().numpy(), true.reshape(planes).cpu().numpy(), strict=True)
    ]
    return float(sum(values) / len(values))


def depth_rmse(prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> float:
    """Root mean square error in the unit of the map (metres, pixels of disparity).

    Source: Eigen et al., "Depth map prediction from a single image using a multi-scale deep network", 2014.
    """
    predicted, true = _known(prediction, truth, valid)
    return (predicted - true).square().mean().sqrt().item()


def depth_delta1(prediction: Tensor, truth: Tensor, valid: Tensor | None = None, threshold: float = 1.25) -> float:
    """Share of pixels in [0, 1] with `max(prediction / truth, truth / prediction) < threshold`.

    A prediction that is not positive counts as wrong. The ratio depends on where zero lies, so the truth must be
    positive; `threshold` > 1. Source: Ladicky et al. 2014, and Eigen et al. 2014.
    """
    if not threshold > 1:
        raise ValueError(f"threshold must be greater than 1, got {threshold}")
    predicted, true = _known(prediction, truth, valid)
    if true.min() <= 0:
        raise ValueError(f"truth must be positive where it is valid, its minimum is {true.min().item()}")
    right = (predicted > 0) & (predicted < threshold * true) & (true < threshold * predicted)
    return right.double().mean().item()


def feature_rmse(prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> float:
    """Root mean square error over pixels and channels, in the features' own unit."""
    return depth_rmse(prediction, truth, valid)


def feature_cosine(prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> float:
    """Mean over pixels of the cosine of the angle between the two feature vectors, in [-1, 1].

    A pixel where either vector is zero counts as 0.
    """
    _known(prediction, truth, valid)  # refuses values that are not finite
    cosine = functional.cosine_similarity(prediction.double(), truth.double(), dim=-3)
    if valid is not None:
        cosine = cosine[_mask(valid, truth).select(-3, 0)]
    return cosine.mean().item()


def normal_angle(prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> float:
    """Mean angle in degrees between two fields of directions, three channels of any length; a zero vector is 90 off.

    Source: Fouhey, Gupta, Hebert, "Data-driven 3D primitives for single image understanding", 2013.
    """
    _known(prediction, truth, valid)  # refuses values that are not finite
    if truth.shape[-3] != 3:
        raise ValueError(f"truth must have 3 channels, got {tuple(truth.shape)}")
    first, second = prediction.double(), truth.double()
    # Exact at small angles, where the arc cosine has lost its digits.
    angle = torch.atan2(torch.linalg.cross(first, second, dim=-3).norm(dim=-3), (first * second).sum(-3))
    nothing = (first.norm(dim=-3) == 0) | (second.norm(dim=-3) == 0)
    angle = torch.rad2deg(angle).masked_fill(nothing, 90.0)
    if valid is not None:
        angle = angle[_mask(valid, truth).select(-3, 0)]
    return angle.mean().item()


def class_iou(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int = -1) -> Tensor:
    """Intersection over union of each class, `(num_classes,)` float64; NaN for a class in neither map.

    Pixels whose truth is `ignore` are left out. Source: Everingham et al., "The Pascal visual object classes challenge:
    a retrospective", 2015, section 4.1.
    """
    known = _known_labels(prediction, truth, num_classes, ignore)
    return _iou(prediction[known], truth[known], num_classes)


def miou(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int = -1) -> float:
    """Mean of `class_iou` over the classes that occur in the truth or in the prediction, in [0, 1]."""
    return class_iou(prediction, truth, num_classes, ignore).nanmean().item()


def pixel_accuracy(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int = -1) -> float:
    """Share in [0, 1] of the pixels with a known truth that got the right class (micro average)."""
    known = _known_labels(prediction, truth, num_classes, ignore)
    return (prediction[known] == truth[known]).double().mean().item()


def boundary_miou(prediction: Tensor, truth: Tensor, num_classes: int, width: int = 5, ignore: int = -1) -> float:
    """Mean IoU over the pixels within `width` pixels of a true boundary (`boundary_band`), in [0, 1].

    NaN where the truth has no boundary. `width` is at least 1. Source: the trimap experiment of Kohli et al., "Robust
    higher order potentials", 2009, and Kraehenbuehl and Koltun, "Efficient inference in fully connected CRFs", 2011.
    """
    known = _known_labels(prediction, truth, num_classes, ignore) & boundary_band(truth, width)
    return _iou(prediction[known], truth[known], num_classes).nanmean().item()


def boundary_band(labels: Tensor, width: int = 5) -> Tensor:
    """Pixels within `width` pixels (greater of the two axis distances) of an edge between two labels.

    Void is a label like any other here, because Pascal VOC marks its object boundaries by a ring of void (Chen et al.,
    "DeepLab", 2016, section 4.1).

    Args:
        labels: (H, W) or (B, H, W) integers.
        width: at least 1.

    Returns:
        bool of the shape of `labels`.
    """
    _labels("labels", labels)
    if width < 1:
        raise ValueError(f"width must be at least 1 pixel, got {width}")
    edge = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for axis in (-2, -1):
        size = labels.shape[axis] - 1
        change = labels.narrow(axis, 1, size) != labels.narrow(axis, 0, size)
        edge.narrow(axis, 1, size).logical_or_(change)
        edge.narrow(axis, 0, size).logical_or_(change)
    planes = edge.reshape(-1, 1, *labels.shape[-2:]).float()
    # The two pixels beside an edge are at distance 1 of it, hence width - 1 more on either side.
    grown = functional.max_pool2d(planes, 2 * width - 1, stride=1, padding=width - 1)
    return grown.reshape(labels.shape) > 0


def _iou(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """IoU of each class from flat label vectors; NaN where the union is empty."""
    pair = truth.long() * num_classes + prediction.long()
    table = torch.bincount(pair, minlength=num_classes**2).reshape(num_classes, num_classes).double()
    both = table.diagonal()
    return both / (table.sum(0) + table.sum(1) - both)


def _known(prediction: Tensor, truth: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The values that count, flat and in float64."""
    _same_shape(prediction, truth)
    if valid is None:
        pairs = prediction.flatten().double(), truth.flatten().double()
    else:
        mask = _mask(valid, truth)
        if not mask.any():
            raise ValueError("valid leaves no pixel to measure")
        pairs = prediction[mask].double(), truth[mask].double()
    for name, values in zip(("prediction", "truth"), pairs, strict=True):
        if not values.sum().isfinite():  # a sum is much quicker than looking at every value
            bad = (~values.isfinite()).sum().item()
            raise ValueError(f"{name} must be finite where it is valid, got {bad} values that are not")
    return pairs


def _same_shape(prediction: Tensor, truth: Tensor) -> None:
    for name, value in (("prediction", prediction), ("truth", truth)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {_pair(prediction, truth)}")
    if truth.ndim not in (3, 4) or truth.numel() == 0:
        raise ValueError(f"truth must be (C, H, W) or (B, C, H, W) and not empty, got {tuple(truth.shape)}")


def _mask(valid: Tensor | None, truth: Tensor) -> Tensor:
    """`valid` in the shape of `truth`."""
    if valid is None:
        return torch.ones(truth.shape, dtype=torch.bool, device=truth.device)
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        got = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"valid must be a boolean torch.Tensor, got {got}")
    batch = truth.shape[:-3]
    if valid.shape not in (truth.shape[-2:], batch + truth.shape[-2:]):
        raise ValueError(f"valid must be (H, W) or (B, H, W) of a truth {tuple(truth.shape)}, got {tuple(valid.shape)}")
    return valid.unsqueeze(-3).expand(truth.shape)


def _known_labels(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int) -> Tensor:
    _labels("prediction", prediction)
    _labels("truth", truth)
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {_pair(prediction, truth)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    known = truth != ignore
    if not known.any():
        raise ValueError(f"truth is {ignore} (ignored) everywhere: nothing to measure")
    for name, values in (("prediction", prediction[known]), ("truth", truth[known])):
        low, high = values.min().item(), values.max().item()
        if low < 0 or high >= num_classes:
            raise ValueError(f"{name} must hold classes 0 to {num_classes - 1}, got {low} to {high}")
    return known


def _labels(name: str, labels: Tensor) -> None:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} must be an integer torch.Tensor of classes, got {got}")
    if labels.ndim not in (2, 3) or labels.numel() == 0:
        raise ValueError(f"{name} must be (H, W) or (B, H, W) and not empty, got {tuple(labels.shape)}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be greater than 0, got {value}")


def _pair(a: Tensor, b: Tensor) -> str:
    return f"{tuple(a.shape)} and {tuple(b.shape)}"
