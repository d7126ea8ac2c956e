"""What the tests of the operator share: made-up problems, and a comparison that bounds largest and RMS error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from kernels.bilateral import reference
from kernels.geometry import Factors, Support, area_weights, disc_offsets, owners, reached_pixels

GRADIENTS = ("signal", *Factors._fields)
WORST_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """Arguments of `render`. Made in float32, so that a float64 copy holds the very same numbers."""

    signal: Tensor
    guide: Tensor
    guide_lr: Tensor
    factors: Factors
    support: Support
    radius: Tensor | None = None
    valid: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another precision; the masks stay."""
        return replace(
            self,
            signal=self.signal.to(dtype),
            guide=self.guide.to(dtype),
            guide_lr=self.guide_lr.to(dtype),
            factors=Factors(*(lr_map.to(dtype) for lr_map in self.factors)),
        )

    def item(self, image: int) -> Problem:
        """One image of the batch, as a batch of its own."""

        def one(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[image : image + 1]

        return Problem(
            one(self.signal),
            one(self.guide),
            one(self.guide_lr),
            Factors(*(one(lr_map) for lr_map in self.factors)),
            self.support,
            one(self.radius),
            one(self.valid),
        )

    def reached(self) -> Tensor:
        """Pixels with a valid candidate, (B, H, W) bool."""
        valid = torch.ones_like(self.factors.r, dtype=torch.bool) if self.valid is None else self.valid
        return reached_pixels(valid, tuple(self.guide.shape[-2:]), self.support, self.radius)

    def render(self, backend: ModuleType) -> Tensor:
        return backend.render(
            self.signal,
            self.guide,
            self.guide_lr,
            self.factors,
            support=self.support,
            radius=self.radius,
            valid=self.valid,
        )

    def gradients(self, backend: ModuleType, *, of_guide: bool = False) -> dict[str, Tensor]:
        """Gradients of a sum of the render with fixed random coefficients, by the name of the argument."""
        tensors = {"signal": self.signal, **self.factors._asdict()}
        if of_guide:
            tensors |= {"guide": self.guide, "guide_lr": self.guide_lr}
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
        problem = replace(
            self,
            signal=leaves["signal"],
            guide=leaves.get("guide", self.guide),
            guide_lr=leaves.get("guide_lr", self.guide_lr),
            factors=Factors(*(leaves[name] for name in Factors._fields)),
        )
        out = problem.render(backend)
        # Multiples of 1/8, which half precision holds exactly.
        coefficients = torch.randn(out.shape, generator=torch.Generator().manual_seed(99))
        coefficients = ((8 * coefficients).round() / 8).to(out)
        out = out.masked_fill(~self.reached()[:, None], 0)
        return dict(zip(leaves, torch.autograd.grad((coefficients * out).sum(), tuple(leaves.values())), strict=True))

    def loss_and_gradients(self, backend: ModuleType) -> tuple[Tensor, dict[str, Tensor]]:
        """`reconstruction_l1` of every image, and the gradients of a weighted sum of them by the factors."""
        leaves = Factors(*(lr_map.detach().clone().requires_grad_() for lr_map in self.factors))
        loss = backend.reconstruction_l1(
            self.signal, self.guide, self.guide_lr, leaves, support=self.support, radius=self.radius
        )
        weights = torch.arange(1, len(loss) + 1, dtype=loss.dtype, device=loss.device)
        gradients = torch.autograd.grad((weights * loss).sum(), leaves)
        return loss.detach(), dict(zip(Factors._fields, gradients, strict=True))


def make_problem(
    *,
    grid: tuple[int, int] = (4, 4),
    size: tuple[int, int] = (16, 16),
    batch: int = 1,
    channels: int = 3,
    guide_channels: int = 3,
    radius: int = 2,
    border: str = "drop",
    sigma: tuple[float, float] = (0.5, 1.5),
    sigma_r: tuple[float, float] = (0.1, 0.4),
    sigma_in_cells: bool = True,
    radius_map: bool = False,
    valid: float | None = None,
    reconstruct: bool = False,
    seed: int = 0,
) -> Problem:
    """Random rotated Gaussians over a random picture.

    `sigma` and `sigma_r` are ranges, `sigma` in cells or in pixels; `valid` is the share of valid cells (at least one
    an image); `radius_map` draws a radius of 0 to `radius` for every pixel; `reconstruct` makes the signal an LR
    version of the guide.
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)

    (rows, cols), (height, width) = grid, size
    scale = math.sqrt(height / rows * width / cols) if sigma_in_cells else 1.0
    # A picture with both shades and texture: neighbouring pixels resemble each other, and none is the same.
    shades = uniform(0, 1, batch, guide_channels, max(1, rows // 2), max(1, cols // 2))
    shades = torch.nn.functional.interpolate(shades, size, mode="bilinear")
    guide = 0.7 * shades + 0.3 * uniform(0, 1, batch, guide_channels, height, width)
    guide_lr = guide[:, :, owner_middles(rows, height)][..., owner_middles(cols, width)]
    guide_lr = (0.8 * guide_lr + 0.2 * uniform(0, 1, *guide_lr.shape)).float()
    sigma_x, sigma_y = (scale * uniform(*sigma, batch, rows, cols) for _ in range(2))
    theta = uniform(-math.pi, math.pi, batch, rows, cols)
    range_sigma = uniform(*sigma_r, batch, rows, cols)
    factors = Factors(
        theta.cos() / (math.sqrt(2) * sigma_x),
        theta.sin() / (math.sqrt(2) * sigma_x),
        -theta.sin() / (math.sqrt(2) * sigma_y),
        theta.cos() / (math.sqrt(2) * sigma_y),
        1 / (2 * range_sigma**2),
    )
    signal = guide_lr if reconstruct else torch.randn(batch, channels, rows, cols, generator=random)
    mask = None
    if valid is not None:
        mask = torch.rand(batch, rows, cols, generator=random) < valid
        mask[:, rows // 2, cols // 2] = True
    radii = torch.randint(0, radius + 1, (batch, height, width), generator=random) if radius_map else None
    return Problem(
        signal,
        guide.float(),
        guide_lr,
        Factors(*(lr_map.float() for lr_map in factors)),
        Support(radius, border),
        radii,
        mask,
    )


def owner_middles(cells: int, pixels: int) -> Tensor:
    """One pixel of every cell along an axis, near its centre."""
    return ((torch.arange(cells) + 0.5) * pixels / cells).long().clamp(max=pixels - 1)


def largest_score(problem: Problem) -> float:
    """How large the best score of a pixel becomes, in absolute value: rounding of scores is proportional to it."""
    problem = problem.to(torch.float64)
    axes = [
        (torch.arange(pixels, dtype=torch.float64), owners(cells, pixels), pixels / cells, cells)
        for cells, pixels in zip(problem.signal.shape[-2:], problem.guide.shape[-2:], strict=True)
    ]
    (y, owner_y, scale_y, rows), (x, owner_x, scale_x, cols) = axes
    best = torch.full_like(problem.guide[:, 0], -torch.inf)
    for dy, dx in disc_offsets(problem.support.radius).tolist():
        key_y, key_x = (owner_y + dy).clamp(0, rows - 1), (owner_x + dx).clamp(0, cols - 1)
        ux, uy, vx, vy, r = (lr_map[:, key_y][:, :, key_x] for lr_map in problem.factors)
        away_y = (y - ((key_y + 0.5) * scale_y - 0.5))[:, None]
        away_x = x - ((key_x + 0.5) * scale_x - 0.5)
        colour = (problem.guide - problem.guide_lr[:, :, key_y][..., key_x]).square().sum(1)
        score = -(ux * away_x + uy * away_y).square() - (vx * away_x + vy * away_y).square() - r * colour
        best = torch.maximum(best, score)
    return float(best.abs().max())


def assert_near(actual: Tensor, expected: Tensor, *, largest: float, rms: float, unit: float = 1.0) -> None:
    """Both the largest and the root mean square of |actual - expected| / unit are bounded; NaN only where expected.

    Raises:
        AssertionError: with the worst places.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    misplaced = actual.isnan() != expected.isnan()
    assert not misplaced.any(), f"NaN differs at {int(misplaced.sum())} places, first {misplaced.nonzero()[0].tolist()}"
    error = ((actual - expected) / unit).abs().nan_to_num(0.0)
    found_largest, found_rms = float(error.max()), float(error.square().mean().sqrt())
    if found_largest <= largest and found_rms <= rms:
        return
    worst = error.flatten().argsort(descending=True)[:WORST_SHOWN]
    places = [tuple(int(i) for i in torch.unravel_index(place, error.shape)) for place in worst]
    lines = [f"  {place}: {float(actual[place]):.9g}, expected {float(expected[place]):.9g}" for place in places]
    bounds = f"largest error {found_largest:.3g} (bound {largest:.3g}), RMS {found_rms:.3g} (bound {rms:.3g})"
    raise AssertionError("\n".join([f"{bounds}, in units of {unit:.3g}", *lines]))


def assert_same_gradients(
    actual: dict[str, Tensor], expected: dict[str, Tensor], *, largest: float, rms: float, matrix: bool = False
) -> None:
    """`assert_near` of every gradient, in units of the largest value of that gradient.

    matrix: the four entries of the factors, which are one matrix, share the unit of the largest.
    """
    assert actual.keys() == expected.keys()
    sizes = {name: max(float(gradient.abs().max()), 1e-12) for name, gradient in expected.items()}
    if matrix:
        sizes |= dict.fromkeys(Factors._fields[:4], max(sizes[name] for name in Factors._fields[:4]))
    for name, gradient in expected.items():
        unit = sizes[name]
        try:
            assert_near(actual[name], gradient, largest=largest, rms=rms, unit=unit)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None


def truth(problem: Problem) -> Tensor:
    """The reference's render in float64 of the same numbers."""
    return problem.to(torch.float64).render(reference)


def averages(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Of (B, C, H, W) over every LR cell, a pixel that is cut counting by its share."""
    rows, cols = (area_weights(pixels, cells).to(x) for pixels, cells in zip(x.shape[-2:], grid, strict=True))
    return rows @ x @ cols.mT
