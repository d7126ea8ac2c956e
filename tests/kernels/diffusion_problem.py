"""Made-up problems for the tests of the diffusion, and what a backend makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from kernels.diffusion import reference

CASES: dict[str, dict] = {
    "plain": {},
    "scale-1": {"grid": (3, 4), "size": (3, 4)},
    "scale-barely-above-1": {"grid": (2, 5), "size": (3, 7)},
    "one-pixel-rows": {"grid": (2, 2), "size": (2, 9)},
    "non-integer": {"grid": (2, 3), "size": (5, 8)},
    "one-axis-non-integer": {"grid": (2, 3), "size": (4, 8)},
    "unequal": {"grid": (1, 4), "size": (7, 8)},
    "one-row": {"grid": (1, 3), "size": (1, 7)},
    "one-column": {"grid": (2, 1), "size": (5, 1)},
    "one-pixel": {"grid": (1, 1), "size": (1, 1)},
    "one-cell": {"grid": (1, 1), "size": (5, 9)},
    "C=1": {"channels": 1, "grid": (2, 3), "size": (4, 9)},
    "C=17": {"channels": 17, "grid": (2, 2), "size": (4, 6)},
    "batch-and-holes": {"batch": 2, "grid": (2, 3), "size": (4, 9), "valid": 0.5},
    "batch-and-holes-non-integer": {"batch": 2, "grid": (2, 3), "size": (3, 7), "valid": 0.5},
    "factors-of-the-share": {"batch": 2, "grid": (2, 3), "size": (4, 9), "factors": True},
    "factors-of-the-share-non-integer": {"grid": (2, 3), "size": (3, 7), "factors": True},
    "one-step": {"steps": 1},
    "three-steps": {"grid": (2, 2), "size": (4, 6), "steps": 3},
    "five-steps": {"grid": (2, 2), "size": (4, 6), "steps": 5},
    "averages-held": {"share": 1.0, "rate": 0.25},
    "five-steps-non-integer": {"grid": (2, 3), "size": (3, 7), "steps": 5, "factors": True},
    "as default has it": {"grid": (2, 2), "size": (4, 4), "steps": 14, "rate": 0.25, "share": 0.05, "factors": True},
    "nothing-given-back": {"share": 0.0},
}


@dataclass(frozen=True)
class Problem:
    """Arguments of `diffuse`. Made in float32, so that a float64 copy holds the very same numbers."""

    start: Tensor
    signal: Tensor
    across: Tensor
    down: Tensor
    valid: Tensor | None
    steps: int
    rate: float
    share: float

    def to(self, where: torch.dtype | str) -> Problem:
        """The same numbers in another precision, or on another device; `valid` keeps its type."""
        names = ("start", "signal", "across", "down")
        moved = replace(self, **{name: getattr(self, name).to(where) for name in names})
        if self.valid is None or isinstance(where, torch.dtype):
            return moved
        return replace(moved, valid=self.valid.to(where))

    def diffuse(self, backend: ModuleType) -> Tensor:
        return backend.diffuse(
            self.start,
            self.signal,
            self.across,
            self.down,
            steps=self.steps,
            rate=self.rate,
            share=self.share,
            valid=self.valid,
        )

    def values_and_gradients(
        self, backend: ModuleType, names: tuple[str, ...] = ("start", "signal")
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The result, and gradients of a sum of it with fixed random coefficients, by name; of what has values."""
        tensors = {name: getattr(self, name) for name in names if getattr(self, name).numel() > 0}
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
        out = replace(self, **leaves).diffuse(backend)
        # Multiples of 1/8, which half precision holds exactly.
        coefficients = torch.randn(out.shape, generator=torch.Generator().manual_seed(99))
        coefficients = ((8 * coefficients).round() / 8).to(out)
        found = torch.autograd.grad((coefficients * out).sum(), tuple(leaves.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }
        return out.detach(), gradients

    def gradients(self, backend: ModuleType, names: tuple[str, ...] = ("start", "signal")) -> dict[str, Tensor]:
        return self.values_and_gradients(backend, names)[1]


def make_problem(
    *,
    grid: tuple[int, int] = (2, 3),
    size: tuple[int, int] = (4, 12),
    batch: int = 1,
    channels: int = 3,
    valid: float | None = None,
    factors: bool = False,
    steps: int = 2,
    rate: float = 0.15,
    share: float = 0.8,
    seed: int = 0,
) -> Problem:
    """A random start and signal, unlike each other; a fifth of the conductances 0, the others anything up to 1.

    Cells that are followed: all, the part `valid` of them, or each by its own one of `factors`.
    """
    random = torch.Generator().manual_seed(seed)

    def conductance(*shape: int) -> Tensor:
        values = torch.rand(shape, generator=random)
        return torch.where(values < 0.2, 0.0, values)

    height, width = size
    mask = None
    if valid is not None:
        mask = torch.rand(batch, *grid, generator=random) < valid
        mask[:, 0, 0] = True
    if factors:
        mask = torch.rand(batch, *grid, generator=random) / share
    return Problem(
        torch.randn(batch, channels, *size, generator=random),
        1 + torch.randn(batch, channels, *grid, generator=random),
        conductance(batch, height, width - 1),
        conductance(batch, height - 1, width),
        mask,
        steps,
        rate,
        share,
    )


def truth(problem: Problem) -> Tensor:
    """The reference's result in float64 of the same numbers."""
    return problem.to(torch.float64).diffuse(reference)
