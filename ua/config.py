"""Every knob of the method in one frozen dataclass, and the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Integral, Real

from ua import parameterisations, plugins

CHOICES = {
    "init": ("isotropic", "structure_tensor"),
    "sigma_unit": ("pixel", "cell"),
    "radius_rule": ("fixed", "pixel", "cell"),
    "border": ("clamp", "drop"),
    "guide_lr": ("bilinear", "area"),
    "image_lr": ("bicubic", "bilinear", "antialias", "area"),
    "signal_is": ("auto", "average", "prediction"),
}

LARGEST = 1e9  # of any number here: its square is finite in float32
LARGEST_RADIUS = 100  # cells; some 31 000 candidates a pixel, more than any use of this method


@dataclass(frozen=True)
class FitConfig:
    """What is fitted, to what, how, and which cells may reach a pixel.

    Args:
        parameterisation: a module of `ua.parameterisations`, or the dotted name of your own.
        sigma: initial sigma_x = sigma_y, in `sigma_unit`; > 0, at most 1e9.
        sigma_unit: "pixel" (HR pixels, whatever the scale) or "cell" (multiples of the scale of each axis).
        sigma_r: initial range sigma, guide units; > 0, at most 1e9.
        init: "isotropic" (`sigma` along both axes, no angle) or "structure_tensor": longer along the edges of the
            guide, by exp(.5 coherence) of its structure tensor over the cell (`ua.structure`). The second needs a
            parameterisation that can turn.
        radius: candidates lie within this many cells of a pixel's owner; 0 to 100.
        radius_rule: "fixed" (`radius` everywhere), or smaller discs of ceil(2 sigma) cells where sigma is counted in
            "pixel"s (the released code, whose units do not match) or in "cell"s (the paper's text).
        border: candidates beyond the grid are dropped ("drop") or count as the border cell once more ("clamp").
        prefilter: what cleans the image before it becomes the guide: a module of `ua.prefilters` ("none", "median",
            "denoise", or "auto", which acts on corrupted images alone), or the dotted name of your own.
        guide: the space in which colours are compared: a module of `ua.guides`, or the dotted name of your own.
        guide_lr: how the guide of the range term comes to the LR grid: "bilinear" (no antialias) or "area" (mean).
        image_lr: how the LR image that the fit renders is made: "bicubic" or "bilinear" (no antialias),
            "antialias" (bicubic with one) or "area".
        leave_one_out: steps by which `Fit.render` adapts the Gaussians to the signal at hand, so that every cell is
            best predicted from the others around it (`ua.leave_one_out`, which starts from 2.5 times sigma_r, whatever
            the parameterisation, radius_rule and border); >= 0. For averages alone.
        regression: whether what local statistics of the guide predict of features (more than four channels, no class
            probabilities), learned from the LR features themselves, is taken as it is, so that the Gaussians upsample
            what it leaves (`ua.regression`).
        discriminants: whether predicted class probabilities are mixed as logarithms, to which is added what local
            linear discriminants of the guide, learned from the probabilities themselves, say within cells
            (`ua.discriminants`). How noisy they are is judged by what Gaussians of `default`'s `sigma` make of them;
            greater ones make every map look noisy.
        first_order: whether renders correct the weights so that linear ramps are nearly reproduced (`ua.first_order`);
            results may then leave the range of the signal. A fit steps the plain weights all the same.
        signal_is: whether the LR signal is the "average" of the truth under its cells (a downsampled depth map), which
            the refinements below then hold exactly, or the "prediction" of a network (class probabilities, noisy
            depth), which is only followed loosely; "auto" tells by the signal (`ua.averages`).
        back_projections: how often what a render lacks against the LR signal is added, bicubic; >= 0. None for a
            prediction.
        diffusions: steps of anisotropic diffusion along the guide that keeps averages, no more than a cell has pixels
            along an axis; >= 0. A prediction, which it only follows, takes twice as many; predicted classes, with
            `discriminants`, nearly half of these before. They are one accelerated cycle (two): n of them smooth as much
            as n (n + 1) / 2 single ones (`kernels.diffusion`).
        assignments: rounds in which averages of labels are sharpened, so that every pixel belongs to nearly one class
            and every cell nearly keeps its shares (`kernels.assignment`), with diffusion between them; >= 0. Taken for
            such are class probabilities (two channels or more, sums of 1) most of whose little values are 0. 0 is the
            choice for a truth that is itself soft, like a matte; hard labels that are said to be an "average" fill
            their cells; other signals stay as they are.
        edge: difference of neighbouring guide colours that halves the diffusion, guide units; > 0, at most 1e9.
        objective: what the fit minimises: a module of `ua.objectives` ("l1", which backends have fused loops for, "l2",
            "charbonnier"), or the dotted name of your own.
        steps: Adam steps; 0 renders with the initial Gaussians.
        lr: learning rate of Adam on the raw maps; > 0, at most 1e9.
        lr_decay: factor on the learning rate after every step; in (0, 1].

    Raises:
        ValueError, TypeError: a field out of its range; the message names the field, what came and what is accepted.
    """

    parameterisation: str = "anisotropic"
    sigma: float = 16.0
    sigma_unit: str = "pixel"
    sigma_r: float = 0.12
    init: str = "isotropic"
    radius: int = 8
    radius_rule: str = "fixed"
    border: str = "drop"
    prefilter: str = "none"
    guide: str = "identity"
    guide_lr: str = "bilinear"
    image_lr: str = "bicubic"
    leave_one_out: int = 0
    regression: bool = False
    discriminants: bool = False
    first_order: bool = False
    signal_is: str = "auto"
    back_projections: int = 0
    diffusions: int = 0
    assignments: int = 0
    edge: float = 0.03
    objective: str = "l1"
    steps: int = 50
    lr: float = 0.1
    lr_decay: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(plugins.unknown(name, getattr(self, name), choices))
        for name in ("sigma", "sigma_r", "edge", "lr", "lr_decay"):
            _require_number(name, getattr(self, name), float, "a positive number")
            object.__setattr__(self, name, float(getattr(self, name)))
            if not (0 < getattr(self, name) <= LARGEST):
                got = f"got {getattr(self, name)!r} (accepted: above 0, at most {LARGEST:g})"
                raise ValueError(f"{name} must be a positive number, {got}")
        for name in ("radius", "steps", "leave_one_out", "back_projections", "diffusions", "assignments"):
            _require_number(name, getattr(self, name), int, "an integer >= 0")
            object.__setattr__(self, name, int(getattr(self, name)))
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be an integer >= 0, got {getattr(self, name)!r}")
        if self.radius > LARGEST_RADIUS:
            raise ValueError(f"radius must be at most {LARGEST_RADIUS} cells, got {self.radius!r}")
        if self.lr_decay > 1:
            raise ValueError(f"lr_decay must be in (0, 1], got {self.lr_decay!r}")
        for name in ("regression", "discriminants", "first_order"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
        parts = plugins.find("ua.parameterisations", self.parameterisation, needs="Kernels", kind="parameterisation")
        if self.init != "isotropic" and not parameterisations.can_turn(parts.Kernels):
            raise ValueError(
                f"init={self.init!r} needs Gaussians that can turn, and parameterisation={self.parameterisation!r} "
                "cannot: its Kernels take no `theta`"
            )
        plugins.find("ua.prefilters", self.prefilter, needs="apply", kind="prefilter")
        plugins.find("ua.guides", self.guide, needs="transform", kind="guide")
        plugins.find("ua.objectives", self.objective, needs="loss", kind="objective")

    def replace(self, **overrides: object) -> FitConfig:
        """A copy with some fields changed.

        Raises:
            ValueError: a name that is no field, with the nearest one.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in fields:
                raise ValueError(plugins.unknown("FitConfig field", name, fields))
        return dataclasses.replace(self, **overrides)  # type: ignore[arg-type]


def _require_number(name: str, value: object, kind: type, accepted: str) -> None:
    allowed = Real if kind is float else Integral  # NumPy's numbers, too
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} must be {accepted}, got {value!r} of type {type(value).__name__}")


PRESETS: dict[str, FitConfig] = {
    # What the authors' released code computes (PAPER section 2): 16 pixels whatever the scale, clamped border.
    "released": FitConfig(
        sigma=16.0,
        sigma_unit="pixel",
        sigma_r=0.12,
        radius=8,
        radius_rule="pixel",
        border="clamp",
        guide_lr="bilinear",
        image_lr="bicubic",
        steps=51,
        lr=0.1,
        lr_decay=1e-8 ** (1 / 5100),
    ),
    # What the paper's text states (PAPER section 1): sigma = scale, disc of 2 sigma, bilinear LR image, Adam at 1e-3.
    "paper": FitConfig(
        sigma=1.0,
        sigma_unit="cell",
        sigma_r=0.12,
        radius=8,
        radius_rule="cell",
        border="clamp",
        guide_lr="bilinear",
        image_lr="bilinear",
        steps=50,
        lr=1e-3,
    ),
    # Colour reconstruction alone, for those who want that: the L1 loss that `released` has after its 51 steps, in 10
    # and a quarter of the time. Nine dev images of 224 x 224, x8 and x16, loss over released's final loss: mean .88,
    # worst .96, PSNR higher on each; 320 x 448: mean .86, worst .93. (Grids of 8 x 8 only: mean .93, worst 1.14; with
    # radius 8, 12 steps: mean .95, worst 1.03.) What does it: colours told apart from the start (sigma_r near the
    # fitted median, .01 to .03), a larger disc without repeated border cells, a larger rate. Transfer is worse yet.
    "reconstruction": FitConfig(
        sigma=4.0,
        sigma_unit="cell",
        sigma_r=0.03,
        radius=10,
        border="drop",
        guide_lr="bilinear",
        image_lr="bicubic",
        steps=10,
        lr=0.25,
    ),
    # The best transfer on the development images of `experiment=transfer` (experiments/transfer.md): no fit, small
    # kernels on colours as seen that are adapted to the signal, diffusion along the guide, which keeps the averages
    # where there are any to keep, and pixels assigned to classes where the averages are those of labels. Of features it
    # upsamples what a regression on the guide's local statistics leaves; to predicted classes it adds what colours say.
    "default": FitConfig(
        sigma=0.9,
        sigma_unit="cell",
        sigma_r=0.07,
        radius=3,
        border="drop",
        prefilter="auto",
        guide="lab",
        guide_lr="area",
        image_lr="area",
        signal_is="auto",
        leave_one_out=10,
        regression=True,
        discriminants=True,
        back_projections=1,
        diffusions=7,
        assignments=4,
        edge=0.03,
        steps=0,
    ),
}


def preset(name: str) -> FitConfig:
    """The settings of that name: "default", "paper", "reconstruction" or "released".

    Raises:
        ValueError: unknown name, or a `FitConfig`.
    """
    if isinstance(name, FitConfig):
        raise ValueError("preset must be a name, got a FitConfig; its fields are overrides: **vars(config)")
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(plugins.unknown("preset", name, PRESETS))
    return PRESETS[name]
