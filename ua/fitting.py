"""Test-time optimisation: fit the Gaussians of one image, once, then render any signal on their grid."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ua import backends, inputs, plugins, structure
from ua.config import FitConfig
from ua.config import preset as find_preset
from ua.files import as_path, atomic_path
from ua.gaussians import EPS, Gaussians
from ua.parameterisations import SMALLEST_SIGMA, Parameterisation
from ua.rendering import (
    cells_per_pixel,
    check_gaussians,
    make_guide,
    no_autocast,
    radius_map,
    render_adapted,
    support,
    to_grid,
)

Callback = Callable[[int, Tensor, Gaussians], None]


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """Gaussians fitted to one batch of images.

    Attributes:
        gaussians: the four maps, each (B, h, w).
        losses: (steps, B), `config.objective` of every image before each step; (0, B) where nothing was to be fitted.
        config: the settings that made it.
        image: what came, (B, G, H, W) float in [0, 1], before prefilter and colour space.
        backend: what `render` computes with.
    """

    gaussians: Gaussians
    losses: Tensor
    config: FitConfig
    image: Tensor
    backend: str = "auto"

    def __repr__(self) -> str:
        """Sizes and settings; the numbers of the tensors would fill pages."""
        images, grid = (" x ".join(map(str, tensor.shape)) for tensor in (self.image, self.gaussians.theta[0]))
        return f"Fit(image {images}, grid {grid}, {len(self.losses)} steps, backend={self.backend!r}, {self.config})"

    def render(self, signal: Any, valid: Any = None) -> Tensor:
        """Mix an LR signal (B, C, h, w), (C, h, w) or (h, w) up to (B, C, H, W); see `ua.render`.

        The Gaussians are first adapted to the signal (and not kept), unless they require gradients: by leave-one-out
        steps with `config.leave_one_out`; with `config.discriminants` they are wider for noisy maps of classes.
        Gradients to the signal take as given whatever is chosen by looking at it: these Gaussians, what
        `signal_is="auto"` decides, what discriminants say, how closely each cell of a prediction is followed.

        Raises:
            TypeError, ValueError: as `ua.render`; and a signal on another grid than the fit's.
        """
        grid = inputs.grid_of(self.gaussians.theta)
        if hasattr(signal, "shape") and tuple(signal.shape[-2:]) != grid:
            raise ValueError(f"signal must lie on the grid of the fit, {grid}, got shape {tuple(signal.shape)}")
        values, mask = inputs.as_signal(signal, valid, self.image)
        return render_adapted(values, self.image, self.gaussians, mask, self.config, self.backend)

    def reconstruct(self) -> Tensor:
        """The image rendered from its own LR version, (B, G, H, W): what a colour fit makes similar to the image.

        With a prefilter the fit imitates the filtered image; rendered is the one that came.
        """
        grid = inputs.grid_of(self.gaussians.theta)
        return self.render(to_grid(self.image, grid, self.config.image_lr))

    def with_gaussians(self, gaussians: Gaussians) -> Fit:
        """The same image and settings with other Gaussians, e.g. those that a callback kept; its `losses` are empty."""
        check_gaussians(gaussians, tuple(self.gaussians.theta.shape), self.image)
        return dataclasses.replace(self, gaussians=gaussians, losses=self.losses[:0])

    def save(self, path: str | Path) -> None:
        """Write everything to a .safetensors file, atomically; `Fit.load` reads it."""
        from safetensors.torch import save_file

        tensors = {"image": self.image, "losses": self.losses, **self.gaussians._asdict()}
        metadata = {"config": json.dumps(dataclasses.asdict(self.config)), "backend": self.backend}
        with atomic_path(path) as temporary:
            save_file(
                {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, temporary, metadata
            )

    @staticmethod
    def load(path: str | Path) -> Fit:
        """Read what `save` wrote. Nothing in the file can run code; parts of your own must have been imported before.

        Raises:
            TypeError: no path. FileNotFoundError: no such file. ValueError: not a file that `save` wrote.
        """
        from safetensors import SafetensorError, safe_open

        if not as_path(path).is_file():
            raise FileNotFoundError(f"path: no file {str(path)!r}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in ("image", "losses", *Gaussians._fields)}
            fields, backend = json.loads(metadata["config"]), metadata["backend"]
            parts = [fields["guide"], fields["parameterisation"], backend]
            parts += [fields.get("prefilter", "none"), fields.get("objective", "l1")]  # older files lack them
            for part in parts:
                # A dotted name is a module, and importing a module runs code: only the caller may do that.
                if "." in part and part not in sys.modules:
                    raise ValueError(f"it needs the module {part!r}: import that first, if you trust it")
            backends.check_name(backend)
            config = FitConfig().replace(**fields)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path: {str(path)!r} is not a file that ua.Fit.save wrote ({error})") from error
        gaussians = Gaussians(*(tensors[name] for name in Gaussians._fields))
        try:
            grid = inputs.check_grid(tuple(gaussians.theta.shape[-2:]), inputs.as_image(tensors["image"]))
            check_gaussians(gaussians, (len(tensors["image"]), *grid), tensors["image"])
            if tensors["losses"].ndim != 2 or tensors["losses"].shape[1] != len(tensors["image"]):
                raise ValueError(f"losses must be (steps, B), got {tuple(tensors['losses'].shape)}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"path: the tensors of {str(path)!r} do not fit together ({error})") from error
        return Fit(gaussians, tensors["losses"], config, tensors["image"], backend)


def resolve(preset: str, overrides: dict[str, Any]) -> FitConfig:
    """The settings of a preset with some fields changed."""
    return find_preset(preset).replace(**overrides)


def fit(
    image: Any,
    grid: tuple[int, int],
    *,
    preset: str = "default",
    backend: str = "auto",
    callback: Callback | None = None,
    **overrides: Any,
) -> Fit:
    """Fit one bilateral Gaussian per cell of an LR grid so that the LR image renders to the image.

    Minimises `config.objective` of every image (the mean absolute error where nothing else is asked for), in the space
    of `config.guide`, by Adam (arXiv 2511.16301). Images of a batch do not influence each other.

    Args:
        image: tensor (B, G, H, W) or (G, H, W), float in [0, 1] or uint8; NumPy (H, W, G); PIL.
        grid: (h, w) of the LR signals to come; any real scales H / h, W / w >= 1.
        preset: "default", "paper", "reconstruction" or "released".
        backend: "auto", "reference", "torch", "cpu" or "triton".
        callback: called after every step with (step from 1, loss before that step (B,), Gaussians of now).
        overrides: fields of `ua.FitConfig`, e.g. `steps=50, lr=0.1`.

    Raises:
        TypeError, ValueError: an argument of another type, shape, range or name, or an objective that gives no loss
            which can be differentiated; the message names it.
    """
    config = resolve(preset, overrides)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    # A fit needs gradients of its own, also where the caller has switched them off, and all digits under autocast.
    with torch.inference_mode(False), torch.enable_grad(), no_autocast():
        pixels = inputs.as_image(image).detach().clone()  # the caller may reuse its memory; the fit keeps this
        rows, cols = inputs.check_grid(grid, pixels)
        # Without steps, and with round Gaussians, nobody looks at the guide before the render, which makes its own.
        guide = make_guide(pixels, config) if config.steps or config.init != "isotropic" else pixels
        chosen = backends.choose(backend, guide, guide)
        sigma = (config.sigma, config.sigma)
        if config.sigma_unit == "cell":
            sigma = (config.sigma * guide.shape[-1] / cols, config.sigma * guide.shape[-2] / rows)
        parts = plugins.find("ua.parameterisations", config.parameterisation)
        start: tuple[Any, ...] = (*sigma, config.sigma_r)  # of a parameterisation that need not know of angles
        if config.init == "structure_tensor":
            sigma_x, sigma_y, theta = structure.along_edges(guide, (rows, cols), *sigma)
            start = (sigma_x, sigma_y, config.sigma_r, theta)
        kernels: Parameterisation = parts.Kernels((len(guide), rows, cols), *start).to(guide)
        losses = _optimise(kernels, guide, (rows, cols), config, chosen, callback)
        return Fit(kernels.gaussians().detach(), losses, config, pixels, backend)


def _optimise(
    kernels: Parameterisation,
    guide: Tensor,
    grid: tuple[int, int],
    config: FitConfig,
    backend: ModuleType,
    callback: Callback | None,
) -> Tensor:
    """Step the parameters of `kernels` in place; returns the losses, (steps, B)."""
    if config.steps == 0 or not list(kernels.parameters()):
        return guide.new_empty(0, len(guide))
    guide_lr, source = to_grid(guide, grid, config.guide_lr), to_grid(guide, grid, config.image_lr)
    # A backend may fit a parameterisation by itself, to the L1 loss; autograd and torch.optim.Adam serve all others.
    fused = getattr(backend, f"fit_{config.parameterisation}", None) if config.objective == "l1" else None
    if fused is not None:
        return _fit_fused(kernels, source, guide, guide_lr, config, callback, fused)
    losses = []
    steps = _autograd_steps(kernels, source, guide, guide_lr, config, backend)
    for step, loss in enumerate(itertools.islice(steps, config.steps), start=1):
        losses.append(loss)
        if callback is not None:
            callback(step, loss, kernels.gaussians().detach())
    return torch.stack(losses)


def _autograd_steps(
    kernels: Parameterisation, source: Tensor, guide: Tensor, guide_lr: Tensor, config: FitConfig, backend: ModuleType
) -> Iterator[Tensor]:
    """Adam steps for any parameterisation; yields the losses before each, (B,)."""
    adam = torch.optim.Adam(kernels.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, config.lr_decay)
    loss_of = _objective(config, backend)
    while True:
        radius = radius_map(kernels.gaussians(), guide, config)
        loss = loss_of(source, guide, guide_lr, kernels.factors(), support=support(config), radius=radius)
        adam.zero_grad(set_to_none=True)
        loss.sum().backward()
        adam.step()
        schedule.step()
        yield loss.detach()


def _objective(config: FitConfig, backend: ModuleType) -> Callable[..., Tensor]:
    """The loss (B,) of arguments like those of a backend's `reconstruction_l1`."""
    if config.objective == "l1" and hasattr(backend, "reconstruction_l1"):  # one's own may have the render alone
        found: Callable[..., Tensor] = backend.reconstruction_l1
        return found
    part = plugins.find("ua.objectives", config.objective)

    def loss_of(source: Tensor, guide: Tensor, *gaussians: Any, **candidates: Any) -> Tensor:
        loss = part.loss(backend.render(source, guide, *gaussians, **candidates), guide)
        _check_loss(loss, len(guide), config.objective)
        return loss

    return loss_of


def _check_loss(loss: Any, batch: int, name: str) -> None:
    """Raises TypeError or ValueError unless Adam can step by what an objective returned."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"objective={name!r}: loss() must return a tensor (B,), got {type(loss).__name__}")
    if tuple(loss.shape) != (batch,):
        got = f"got shape {tuple(loss.shape)}"
        raise ValueError(f"objective={name!r}: loss() must return one number an image, (B,) = ({batch},), {got}")
    if not loss.requires_grad:
        raise ValueError(f"objective={name!r}: loss() must be differentiable with respect to `rendered`, and is not")


def _fit_fused(
    kernels: Parameterisation,
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    config: FitConfig,
    callback: Callback | None,
    fit_fused: Callable[..., Tensor],
) -> Tensor:
    """The same by a backend's own loop over raw maps, which are the parameters in the order of their declaration."""
    parameters = list(kernels.parameters())
    raw = torch.stack([parameter.detach() for parameter in parameters])

    def take_over() -> None:
        with torch.no_grad():
            for parameter, stepped in zip(parameters, raw, strict=True):
                parameter.copy_(stepped)

    def each(step: int, loss: Tensor) -> None:
        take_over()
        assert callback is not None
        callback(step, loss, kernels.gaussians().detach())

    losses = fit_fused(
        source,
        guide,
        guide_lr,
        raw,
        support=support(config),
        cells_per_pixel=cells_per_pixel(config, guide, source),
        floor=SMALLEST_SIGMA,
        epsilon=EPS,
        lr=config.lr,
        lr_decay=config.lr_decay,
        steps=config.steps,
        each=None if callback is None else each,
    )
    take_over()
    return losses
