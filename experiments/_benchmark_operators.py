"""What the benchmark measures: the operators, their problems, and the least bytes and arithmetic of each.

A new operator is one entry of `OPERATORS`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ua
from kernels.geometry import Factors, Support, disc_offsets, owner_starts
from ua import leave_one_out, plugins
from ua.degrade import area, one_hot
from ua.refinement import AVERAGE_SHARE, BALANCES, PREDICTION_STEPS, RATE, conductances
from ua.rendering import support, to_grid

GUIDE_CHANNELS = 3
CLASSES = 21  # of labels, as VOC has
# Of the synthetic image: `ua.prefilters` finds noise of .035 and .0075 in it (224 pixels), in photographs .001 to .005.
GRAIN, LITTLE_GRAIN = 0.1, 0.02
MAPS = 4  # of an anisotropic Gaussian; the operator itself takes five, `Factors`
# Of others, kernels.bilateral.
PACKAGES = {"diffuse": "kernels.diffusion", "assign": "kernels.assignment", "leave_one_out": "kernels.leave_one_out"}
DENSE = ("reference", "torch.compile")  # not measured where there is no need of a graph compiler, or of dense matrices
BACKEND_MODULES = {"torch.compile": "experiments._torch_compile"}  # others have the name of their backend


@dataclass(frozen=True)
class Case:
    """One measurement: `batch` images of `size` x `size` pixels with `cells` x `cells` cells.

    operator: of `OPERATORS`. backend: one of the library, "torch.compile" or "authors". channels: of the signal,
    whose type is `dtype`; the guide is float32. steps: of one call of the fit, 0 where nothing is fitted.
    """

    operator: str
    backend: str
    size: int
    cells: int
    channels: int
    batch: int
    steps: int
    dtype: str
    device: str
    preset: str

    @property
    def itemsize(self) -> int:
        """Bytes of one value of the signal."""
        return getattr(torch, self.dtype).itemsize

    @property
    def grid(self) -> tuple[int, int]:
        return self.cells, self.cells

    def guide_bytes(self) -> int:
        return 4 * self.batch * GUIDE_CHANNELS * self.size**2

    def signal_bytes(self) -> int:
        return self.itemsize * self.batch * self.channels * self.cells**2

    def output_bytes(self) -> int:
        return self.itemsize * self.batch * self.channels * self.size**2

    def map_bytes(self, maps: int) -> int:
        """float32 maps on the LR grid."""
        return 4 * self.batch * maps * self.cells**2

    def user_bytes(self) -> int:
        """What a user of `ua.upsample` holds: image, signal and output; of a fit the image and the Gaussians."""
        if self.operator == "fit_step":
            return self.guide_bytes() + self.map_bytes(MAPS)
        return self.guide_bytes() + self.signal_bytes() + self.output_bytes()


@dataclass(frozen=True)
class Problem:
    """Tensors of a case, on its device: everything that the operators take as given."""

    case: Case
    image: Tensor  # (B, 3, H, W) float32 in [0, 1]
    signal: Tensor  # (B, C, h, w)
    guide: Tensor  # the image in the space of the preset
    guide_lr: Tensor  # (B, 3, h, w)
    factors: Factors  # five maps (B, h, w)
    support: Support

    def render(self, signal: Tensor, factors: Factors) -> Tensor:
        backend = plugins.find("kernels.bilateral", module_name(self.case.backend))
        return backend.render(signal, self.guide, self.guide_lr, factors, support=self.support)

    def fit(self) -> ua.Fit:
        backend = module_name(self.case.backend)
        return ua.fit(self.image, self.case.grid, preset=self.case.preset, backend=backend, steps=self.case.steps)


@dataclass(frozen=True)
class Operator:
    """One entry of the registry.

    prepare: of a problem, everything that is not timed; returns what is timed. Called anew for every repeat.
    least_bytes: what must move between memory and chip at least, for one call (of a fit: one step).
    flops: additions, multiplications and exponentials, each counted as one, for the same.
    whole_call: a call of the library with its checks, timed by the clock of the host also on a GPU.
    not_by: backends that are not measured: dense matrices of all pixels, or no such operator.
    """

    prepare: Callable[[Problem], Callable[[], Any]]
    least_bytes: Callable[[Case], float]
    flops: Callable[[Case], float]
    whole_call: bool = False
    not_by: tuple[str, ...] = ()


def make_problem(case: Case) -> Problem:
    """The tensors of a case. The same case gives the same numbers.

    The Gaussians are spread as 51 steps of `released` leave them on this image at 224 x 224 (median sigma_x 84 px,
    sigma_r .07; standard deviation of their logarithms 1.25 and .67; all angles), so that what can be skipped is what
    could be skipped after a fit.
    """
    config = ua.preset(case.preset)
    image = synthetic_image(case.size).repeat(case.batch, 1, 1, 1).to(case.device)
    random = torch.Generator().manual_seed(0)
    signal = torch.rand(case.batch, case.channels, *case.grid, generator=random)
    spread = torch.randn(MAPS, case.batch, *case.grid, generator=random).to(case.device)
    gaussians = ua.Gaussians(
        sigma_x=84 * (1.25 * spread[0]).exp(),
        sigma_y=84 * (1.25 * spread[1]).exp(),
        theta=1.4 * spread[2],
        sigma_r=0.07 * (0.67 * spread[3]).exp(),
    )
    guide = plugins.find("ua.guides", config.guide).transform(image)
    return Problem(
        case=case,
        image=image,
        signal=signal.to(case.device, getattr(torch, case.dtype)),
        guide=guide,
        guide_lr=to_grid(guide, case.grid, config.guide_lr),
        factors=Factors(*gaussians.factors()),
        support=support(config),
    )


def module_name(backend: str) -> str:
    """The module of a backend as `ua.fit` and `plugins.find` take it."""
    return BACKEND_MODULES.get(backend, backend)


def prepare_render(problem: Problem) -> Callable[[], Tensor]:
    """The operator alone: given Gaussians, a signal mixed up to the pixels."""
    return lambda: problem.render(problem.signal, problem.factors)


def prepare_render_backward(problem: Problem) -> Callable[[], tuple[Tensor, ...]]:
    """Gradients to the signal and the five maps; the forward pass before it is not timed."""
    signal = problem.signal.clone().requires_grad_()
    factors = Factors(*(lr_map.clone().requires_grad_() for lr_map in problem.factors))
    out = problem.render(signal, factors)
    d_out = torch.ones_like(out)
    return lambda: torch.autograd.grad(out, (signal, *factors), d_out)


def prepare_fit(problem: Problem) -> Callable[[], ua.Fit]:
    """`ua.fit` with `case.steps` steps, its checks and preparations included."""
    return problem.fit


def prepare_end_to_end(problem: Problem) -> Callable[[], Tensor]:
    """Image and signal in, output out: the setting of the paper's table 4."""
    return lambda: problem.fit().render(problem.signal)


def prepare_default(problem: Problem) -> Callable[[], Tensor]:
    """Image and signal in, output out, with the preset "default" whatever the preset of the case.

    The image has so little grain that "default" leaves it as it is; its signal counts as a prediction.
    """
    return _prepare_upsample(problem, "auto")


def prepare_default_average(problem: Problem) -> Callable[[], Tensor]:
    """The same of a signal that is said to be an average: with leave-one-out, and half the steps of diffusion."""
    return _prepare_upsample(problem, "average")


def _prepare_upsample(problem: Problem, signal_is: str) -> Callable[[], Tensor]:
    case, backend = problem.case, module_name(problem.case.backend)
    image = synthetic_image(case.size, LITTLE_GRAIN).repeat(case.batch, 1, 1, 1).to(case.device)
    return lambda: ua.upsample(image, problem.signal, preset="default", backend=backend, signal_is=signal_is)


def prepare_default_noisy(problem: Problem) -> Callable[[], Tensor]:
    """The same where "default" takes the image's grain for noise, and removes it first."""
    backend = module_name(problem.case.backend)
    return lambda: ua.upsample(problem.image, problem.signal, preset="default", backend=backend)


def prepare_diffuse(problem: Problem) -> Callable[[], Tensor]:
    """The diffusion alone, as the preset "default" has it, of a signal that is bilinear between the cells."""
    config, case = ua.preset("default"), problem.case
    start = torch.nn.functional.interpolate(problem.signal, (case.size, case.size), mode="bilinear")
    across, down = conductances(plugins.find("ua.guides", config.guide).transform(problem.image), config.edge)
    backend = plugins.find("kernels.diffusion", module_name(case.backend))
    options = {"steps": config.diffusions, "rate": RATE, "share": AVERAGE_SHARE}
    return lambda: backend.diffuse(start, problem.signal, across, down, **options)


def prepare_assign(problem: Problem) -> Callable[[], Tensor]:
    """The assignment alone, as the preset "default" has it, of shares that are bilinear between the cells.

    The labels are a Voronoi diagram with a region for each class, so that most cells have one class and few have three.
    """
    case = problem.case
    centres = torch.rand(case.channels, 2, generator=torch.Generator().manual_seed(0))
    axis = (torch.arange(case.size) + 0.5) / case.size
    places = torch.cartesian_prod(axis, axis)  # [HW, 2]
    labels = torch.cdist(places, centres).argmin(1).view(1, case.size, case.size).to(problem.image.device)
    labels = labels.expand(case.batch, -1, -1)
    shares = area(one_hot(labels, case.channels)[0], case.grid)[0].to(getattr(torch, case.dtype)).to(problem.signal)
    scores = torch.nn.functional.interpolate(shares, (case.size, case.size), mode="bilinear")
    backend = plugins.find("kernels.assignment", module_name(case.backend))
    return lambda: backend.assign(scores, shares, balances=BALANCES)


def prepare_leave_one_out(problem: Problem) -> Callable[[], Tensor]:
    """Its steps alone, as the preset "default" has them, from the Gaussians that this starts from."""
    case, config = problem.case, ua.preset("default")
    known = torch.ones(case.batch, *case.grid, dtype=torch.bool, device=problem.guide.device)
    values = leave_one_out.normalised(problem.signal, known).to(problem.guide)
    scale = case.size / case.cells
    one = torch.ones(case.batch, *case.grid, device=problem.guide.device)
    start = ua.Gaussians(config.sigma * scale * one, config.sigma * scale * one, 0 * one, config.sigma_r * one)
    raw = leave_one_out.start_of(start).to(problem.guide)
    colours = to_grid(plugins.find("ua.guides", config.guide).transform(problem.image), case.grid, config.guide_lr)
    backend = plugins.find("kernels.leave_one_out", module_name(case.backend))
    options: dict[str, Any] = {"scale": (scale, scale), "radius": min(config.radius, leave_one_out.MOST_RADIUS)}
    return lambda: backend.fit(values, colours.to(values), known, raw, steps=config.leave_one_out, **options)


def prepare_authors(problem: Problem, folder: str) -> Callable[[], Tensor]:
    """The same by the authors' released code, of which `folder` is a checkout.

    Its function `UPA` takes an RGB image of 8 bits and float32 features (1, C, h, w) on the GPU, fits 51 steps and
    renders under autocast.

    Raises:
        FileNotFoundError: the folder holds no such code. ImportError: what that code needs is not installed.
    """
    pixels = (problem.image[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    features = problem.signal.float()
    upsample = authors_function(folder)
    return lambda: upsample(pixels, features)


@cache
def authors_function(folder: str) -> Callable[[Any, Tensor], Tensor]:
    """`UPA` of the checkout; see `prepare_authors`."""
    source = authors_source(folder)
    sys.path.insert(0, str(source))
    try:
        return importlib.import_module("upsample_anything").UPA
    finally:
        sys.path.remove(str(source))


def authors_source(folder: str) -> Path:
    """Where the module of the checkout lies.

    Raises:
        FileNotFoundError: it does not.
    """
    source = Path(folder).expanduser().resolve() / "src"
    if not (source / "upsample_anything.py").is_file():
        raise FileNotFoundError(f"authors={folder}: there is no src/upsample_anything.py in that folder")
    return source


def pairs(case: Case, radius: int) -> int:
    """Pixels times distinct candidates: sum over pixels of the cells of the grid within `radius` of the owner.

    A clamped border repeats a cell that is within the radius already, so "clamp" and "drop" have the same distinct
    candidates: sum over offsets (dy, dx) of the disc of (pixels whose owner's row i has 0 <= i + dy < h) x (columns
    likewise).
    """
    starts = torch.tensor(owner_starts(case.cells, case.size))
    owned = starts.diff()  # pixels of every cell along one axis

    def inside(shift: int) -> int:
        return int(owned[max(0, -shift) : max(0, case.cells - max(0, shift))].sum())

    along = {shift: inside(shift) for shift in range(-radius, radius + 1)}
    return case.batch * sum(along[dy] * along[dx] for dy, dx in disc_offsets(radius).tolist())


def render_flops(case: Case) -> float:
    """pairs x (15 + 3 G + 2 C).

    Score 12 + 3 G: dx and dy 2, ux dx + uy dy and vx dx + vy dy 6, their squares 2, colour 3 G - 1, times r 1, sum of
    the three terms 2. Softmax 3: subtract the maximum, exponential, sum. Mixing 2 C.
    """
    return _pairs_of(case) * (15 + 3 * GUIDE_CHANNELS + 2 * case.channels)


def backward_flops(case: Case) -> float:
    """pairs x (29 + 3 G + 4 C): the weights again 15 + 3 G, s = d_out . signal 2 C, d signal 2 C, the mean of s 2,
    d score = w (s - mean) 2, moments 8 (spatial) + 2 (colour)."""
    return _pairs_of(case) * (29 + 3 * GUIDE_CHANNELS + 4 * case.channels)


def step_flops(case: Case) -> float:
    """pairs x (29 + 7 G): a render of the guide's G channels, s 2 G, its mean 2, d score 2, moments 10; the weights are
    made once. Loss and Adam are of the size of the image and the grid, and left out."""
    return _pairs_of(case) * (29 + 7 * GUIDE_CHANNELS)


def render_bytes(case: Case) -> float:
    """Guide, its LR version, factors and signal are read once, the output is written once."""
    lr_maps = case.map_bytes(GUIDE_CHANNELS + len(Factors._fields))
    return case.guide_bytes() + lr_maps + case.signal_bytes() + case.output_bytes()


def backward_bytes(case: Case) -> float:
    """The same with d_out read instead, and the gradients of signal and factors written."""
    return render_bytes(case) + case.signal_bytes() + case.map_bytes(len(Factors._fields))


def step_bytes(case: Case) -> float:
    """Guide, LR guide and LR image are read once; parameters and both moments of Adam are read and written."""
    return case.guide_bytes() + case.map_bytes(2 * GUIDE_CHANNELS + 2 * 3 * MAPS)


def default_flops(case: Case) -> float:
    """A render with its radius, and the diffusion of a prediction, of twice as many steps.

    Guide, prefilter and regression are left out.
    """
    return _mixing_flops(case) + PREDICTION_STEPS * diffuse_flops(case)


def default_average_flops(case: Case) -> float:
    """A render with its radius, leave-one-out and the diffusion of an average; the back-projection is left out, too."""
    return _mixing_flops(case) + leave_one_out_flops(case) + diffuse_flops(case)


def _mixing_flops(case: Case) -> float:
    return pairs(case, ua.preset("default").radius) * (15 + 3 * GUIDE_CHANNELS + 2 * case.channels)


def diffuse_flops(case: Case) -> float:
    """Steps x channels x pixels x 17: momentum 3, four neighbours 3 each, average 1, giving back 1."""
    return ua.preset("default").diffusions * case.batch * case.channels * case.size**2 * 17


def diffuse_bytes(case: Case) -> float:
    """Start and output, once each, as if all steps were made in a cache; two maps of conductances; the signal."""
    return 2 * case.output_bytes() + 2 * 4 * case.batch * case.size**2 + case.signal_bytes()


def leave_one_out_flops(case: Case) -> float:
    """Steps x pairs of cells x (37 + 4 C), C the channels after projection.

    Score 12: u and v 6, their squares and the colour term 6. Softmax 4. Mixing 2 C, by weight 2 C, its mean 2, by score
    2. For the source u and v again 6, and four sums 11. Colour distances, which need be made once only, are left out.
    """
    config = ua.preset("default")
    channels = min(case.channels, leave_one_out.MOST_CHANNELS)
    neighbours = len(disc_offsets(min(config.radius, leave_one_out.MOST_RADIUS))) - 1
    return config.leave_one_out * case.batch * case.cells**2 * neighbours * (37 + 4 * channels)


def leave_one_out_bytes(case: Case) -> float:
    """Values, colours and the start are read, four maps written."""
    return case.map_bytes(min(case.channels, leave_one_out.MOST_CHANNELS) + GUIDE_CHANNELS + 2 * MAPS)


def assign_flops(case: Case) -> float:
    """Classes x pixels x (balances + 1) x 8, as if every cell had all classes: cube 2, factor 1, sum 1, quotient 1,
    average 2, factor of the cell 1. The `cpu` backend skips classes that a cell does not have."""
    return (BALANCES + 1) * case.batch * case.channels * case.size**2 * 8


def assign_bytes(case: Case) -> float:
    """Scores are read and probabilities written, once each, and the shares are read."""
    return 2 * case.output_bytes() + case.signal_bytes()


def _pairs_of(case: Case) -> int:
    """With the preset's radius for every pixel: where small Gaussians shrink the disc, this counts too much."""
    return pairs(case, ua.preset(case.preset).radius)


OPERATORS = {
    "end_to_end": Operator(
        prepare_end_to_end,
        lambda case: case.steps * step_bytes(case) + render_bytes(case),
        lambda case: case.steps * step_flops(case) + render_flops(case),
        whole_call=True,
    ),
    "fit_step": Operator(prepare_fit, step_bytes, step_flops, whole_call=True),
    "render": Operator(prepare_render, render_bytes, render_flops),
    "render_backward": Operator(prepare_render_backward, backward_bytes, backward_flops),
    "default": Operator(prepare_default, render_bytes, default_flops, whole_call=True, not_by=DENSE),
    "default_noisy": Operator(prepare_default_noisy, render_bytes, default_flops, whole_call=True, not_by=DENSE),
    "default_average": Operator(
        prepare_default_average,
        render_bytes,
        default_average_flops,
        whole_call=True,
        not_by=DENSE,
    ),
    "leave_one_out": Operator(prepare_leave_one_out, leave_one_out_bytes, leave_one_out_flops, not_by=DENSE),
    "diffuse": Operator(prepare_diffuse, diffuse_bytes, diffuse_flops, not_by=DENSE),
    "assign": Operator(prepare_assign, assign_bytes, assign_flops, not_by=DENSE),
}


@cache
def synthetic_image(size: int, grain: float = GRAIN) -> Tensor:
    """(1, 3, size, size) in [0, 1], of 8 bits a channel, that needs no file: regions with edges, shading and grain.

    A Voronoi diagram of random colours, about one region per 32 x 32 pixels, over noise whose spectrum falls as 1 / f
    and whose standard deviation is `grain`.
    """
    generator = torch.Generator().manual_seed(0)
    regions = max(4, (size // 32) ** 2)
    side = math.ceil(math.sqrt(regions))
    # One point in each square of a lattice, so that the nearest point lies in the 3 x 3 squares around a
    # pixel.
    jitter = torch.rand(side, side, 2, generator=generator)
    colours = torch.rand(side, side, 3, generator=generator)
    position = (torch.arange(size) + 0.5) * side / size
    square = position.long()
    best = torch.full((size, size), math.inf)
    picture = torch.zeros(size, size, 3)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = (square + dy).clamp(0, side - 1), (square + dx).clamp(0, side - 1)
            point = jitter[row[:, None], column]
            distance = (row[:, None] + point[..., 0] - position[:, None]) ** 2 + (
                column + point[..., 1] - position
            ) ** 2
            nearer = distance < best
            best = torch.where(nearer, distance, best)
            picture[nearer] = colours[row[:, None], column][nearer]
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)).clamp(min=1 / size)
    noise = torch.fft.irfft2(
        torch.fft.rfft2(torch.randn(3, size, size, generator=generator)) / frequency, s=(size, size)
    )
    noise = grain * noise / noise.std()
    picture = 0.1 + 0.8 * picture.permute(2, 0, 1) + noise
    return (255 * picture.clamp(0, 1)).round()[None] / 255
