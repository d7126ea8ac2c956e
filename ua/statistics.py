"""Means over images, how sure they are, and comparisons of two methods on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000  # resamples of a bootstrap, random sign flips of a test
EXACT = 12  # values up to which every sign flip is tried
TIE = 1e-9  # differences up to here, relative to the greatest, are no win for either


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; both ends are NaN where one value is all there is."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same images.

    Attributes:
        difference: of the first minus the second, with its confidence interval.
        wins: on how many images the first is better.
        count: of images.
        p: two-sided p value of "the sign of every difference is chance", in (0, 1].
    """

    difference: Interval
    wins: int
    count: int
    p: float


def bootstrap_mean(values: Sequence[float], *, level: float = 0.95, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The mean of one value per image, and its percentile bootstrap interval (Efron 1979) over the images.

    With few images such an interval is too narrow: it knows no image that is unlike all of these.

    Args:
        values: one for each image, at least one, finite.
        level: of confidence, in (0, 1).
        draws: resamples, at least 1.
        seed: of the resampling.

    Raises:
        ValueError: no values, one that is not finite, or a number out of its range.
    """
    numbers = _finite("values", values)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Interval(mean, float("nan"), float("nan"))
    chosen = np.random.default_rng(seed).integers(0, len(numbers), (draws, len(numbers)))
    low, high = np.quantile(numbers[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def paired(
    first: Sequence[float],
    second: Sequence[float],
    *,
    better: str,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compares two methods that were measured on the same images.

    The p value is that of a sign-flip permutation test of the mean difference (Fisher 1935): exact for up to 12 images,
    else from random flips.

    Args:
        first, second: one value for each image, in the same order.
        better: "min" or "max".
        level, draws, seed: as in `bootstrap_mean`.

    Raises:
        ValueError: lengths that differ, another word for `better`, or what `bootstrap_mean` refuses.
    """
    if better not in ("min", "max"):
        raise ValueError(f"better must be 'min' or 'max', got {better!r}")
    if len(first) != len(second):
        raise ValueError(f"first and second must have one length, got {len(first)} and {len(second)}")
    differences = _finite("first", first) - _finite("second", second)
    gains = -differences if better == "min" else differences
    tie = TIE * np.abs(gains).max()
    return Comparison(
        bootstrap_mean(differences.tolist(), level=level, draws=draws, seed=seed),
        wins=int((gains > tie).sum()),
        count=len(gains),
        p=_sign_flip(differences, draws, seed),
    )


def _sign_flip(differences: NDArray[np.float64], draws: int, seed: int) -> float:
    """Share of sign flips whose mean is at least as far from zero as the one that was measured."""
    count = len(differences)
    if count <= EXACT:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (draws, count))
        bits[0] = 0  # what was measured is one of them, so p is never 0
    means = np.abs(((1 - 2 * bits) * differences).mean(1))
    measured = abs(differences.mean())
    return float((means >= measured * (1 - 1e-12)).mean())


def _finite(name: str, values: Sequence[float]) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"{name} must hold at least one number, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be finite, got {values}")
    return numbers
