"""`FitConfig`: what is accepted, and presets against the figures of the paper and of the released code."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

import ua
from ua.config import CHOICES

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "sigma-zero": ({"sigma": 0}, ValueError, "sigma must be a positive number, got 0"),
    "sigma-negative": ({"sigma": -1.0}, ValueError, "sigma must be a positive number, got -1.0"),
    "sigma-nan": ({"sigma": math.nan}, ValueError, "sigma must be a positive number, got nan"),
    "sigma-inf": ({"sigma": math.inf}, ValueError, "sigma must be a positive number, got inf"),
    "sigma-beyond-float32": ({"sigma": 1e300}, ValueError, "sigma must be a positive number, got 1e[+]300 .*at most"),
    "sigma-text": ({"sigma": "16"}, TypeError, "sigma must be a positive number, got '16' of type str"),
    "sigma-none": ({"sigma": None}, TypeError, "sigma must be"),
    "sigma-bool": ({"sigma": True}, TypeError, "sigma must be"),
    "sigma-array": ({"sigma": np.ones(2)}, TypeError, "sigma must be"),
    "sigma_r-zero": ({"sigma_r": 0.0}, ValueError, "sigma_r must be a positive number"),
    "sigma_r-nan": ({"sigma_r": math.nan}, ValueError, "sigma_r must be"),
    "lr-zero": ({"lr": 0.0}, ValueError, "lr must be a positive number"),
    "lr-inf": ({"lr": math.inf}, ValueError, "lr must be a positive number"),
    "lr_decay-zero": ({"lr_decay": 0.0}, ValueError, "lr_decay must be"),
    "lr_decay-above-1": ({"lr_decay": 1.01}, ValueError, r"lr_decay must be in \(0, 1\], got 1.01"),
    "radius-negative": ({"radius": -1}, ValueError, "radius must be an integer >= 0, got -1"),
    "radius-too-large": ({"radius": 10**30}, ValueError, "radius must be at most 100 cells, got 1000"),
    "radius-float": ({"radius": 8.0}, TypeError, "radius must be an integer >= 0, got 8.0 of type float"),
    "radius-bool": ({"radius": True}, TypeError, "radius must be"),
    "steps-negative": ({"steps": -1}, ValueError, "steps must be an integer >= 0, got -1"),
    "steps-float": ({"steps": 51.0}, TypeError, "steps must be an integer"),
    "steps-text": ({"steps": "51"}, TypeError, "steps must be an integer"),
    "back_projections-negative": ({"back_projections": -1}, ValueError, "back_projections must be an integer >= 0"),
    "back_projections-float": ({"back_projections": 1.5}, TypeError, "back_projections must be"),
    **{f"{name}-unknown": ({name: "nothing"}, ValueError, f"unknown {name} 'nothing'.*accepted") for name in CHOICES},
    **{f"{name}-none": ({name: None}, (ValueError, TypeError), name) for name in CHOICES},
    "parameterisation-unknown": ({"parameterisation": "isotrop"}, ValueError, "'isotrop'; did you mean 'isotropic'"),
    "prefilter-unknown": ({"prefilter": "medain"}, ValueError, "unknown prefilter 'medain'; did you mean 'median'"),
    "first_order-number": ({"first_order": 1}, TypeError, "first_order must be True or False, got 1 of type int"),
    "init-isotropic-only": (
        {"init": "structure_tensor", "parameterisation": "isotropic"},
        ValueError,
        "init='structure_tensor' needs .* turn, and parameterisation='isotropic' cannot",
    ),
    "objective-unknown": ({"objective": "l3"}, ValueError, "unknown objective 'l3'; did you mean 'l[12]'"),
    "objective-none": ({"objective": None}, TypeError, "objective: a name is needed, got None"),
    "guide-unknown": ({"guide": "rgb"}, ValueError, "unknown guides? 'rgb'.*identity, lab"),
}


@pytest.mark.parametrize(("fields", "exception", "message"), BAD.values(), ids=BAD)
def test_bad_fields(fields: dict[str, Any], exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        ua.FitConfig(**fields)
    with pytest.raises(exception, match=message):
        ua.preset("released").replace(**fields)


EDGES: list[dict[str, Any]] = [
    {"radius": 0},
    {"steps": 0},
    {"back_projections": 0},
    {"lr_decay": 1},
    {"lr_decay": 1.0},
    {"sigma": 1},
    {"sigma": 1e-3, "sigma_r": 1e3},
]


@pytest.mark.parametrize("fields", EDGES, ids=str)
def test_edges_that_are_accepted(fields: dict[str, Any]) -> None:
    config = ua.FitConfig(**fields)
    assert all(getattr(config, name) == value for name, value in fields.items())


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in CHOICES for value in CHOICES[name]])
def test_every_choice_is_accepted(name: str, value: str) -> None:
    assert getattr(ua.FitConfig(**{name: value}), name) == value


def test_replace_changes_what_it_is_told_and_nothing_else() -> None:
    config = ua.preset("released")
    other = config.replace(steps=3, border="drop")
    changed = {
        field.name for field in dataclasses.fields(config) if getattr(config, field.name) != getattr(other, field.name)
    }
    assert changed == {"steps", "border"} and (other.steps, other.border) == (3, "drop")
    assert config == ua.preset("released") and config.replace() == config
    with pytest.raises(ValueError, match=r"unknown FitConfig field 'sigmar'; did you mean 'sigma"):
        config.replace(sigmar=1.0)


def test_a_config_is_frozen_hashable_and_plain() -> None:
    config = ua.preset("paper")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    assert hash(config) == hash(ua.preset("paper"))
    assert ua.FitConfig(**dataclasses.asdict(config)) == config
    assert all(isinstance(value, (str, int, float)) for value in dataclasses.asdict(config).values())


def test_every_field_is_documented() -> None:
    for field in dataclasses.fields(ua.FitConfig):
        assert f"{field.name}:" in ua.FitConfig.__doc__, field.name


def test_names_of_presets() -> None:
    assert set(ua.PRESETS) == {"released", "paper", "reconstruction", "default"}
    for name in ua.PRESETS:
        assert ua.preset(name) is ua.PRESETS[name]
    with pytest.raises(ValueError, match=r"unknown preset 'papr'; did you mean 'paper'"):
        ua.preset("papr")


# --- figures: PAPER.md sections 1 and 2


def test_released_is_the_authors_code() -> None:
    config = ua.preset("released")
    expected = {
        "parameterisation": "anisotropic",
        "sigma": 16.0,  # HR pixels, whatever the scale
        "sigma_unit": "pixel",
        "sigma_r": 0.12,
        "init": "isotropic",
        "radius": 8,
        "radius_rule": "pixel",  # R = clamp(ceil(2 sigma), 1, 8) with sigma in pixels
        "border": "clamp",
        "prefilter": "none",
        "guide": "identity",
        "guide_lr": "bilinear",
        "image_lr": "bicubic",
        "first_order": False,
        "leave_one_out": 0,
        "regression": False,
        "discriminants": False,
        "signal_is": "auto",
        "back_projections": 0,
        "diffusions": 0,
        "assignments": 0,
        "edge": 0.03,
        "objective": "l1",
        "steps": 51,
        "lr": 0.1,
        "lr_decay": pytest.approx((1e-8) ** (1 / 5100), rel=1e-12),
    }
    assert dataclasses.asdict(config) == expected


def test_paper_is_the_papers_text() -> None:
    config = ua.preset("paper")
    assert (config.sigma, config.sigma_unit, config.sigma_r) == (1.0, "cell", 0.12)  # sigma_x = sigma_y = scale
    assert (config.image_lr, config.guide_lr) == ("bilinear", "bilinear")
    assert (config.steps, config.lr, config.lr_decay) == (50, 1e-3, 1.0)
    assert 4 <= config.radius <= 8 and config.radius_rule == "cell"  # R_max 4 to 8, alpha 2
    assert (config.parameterisation, config.guide, config.back_projections) == ("anisotropic", "identity", 0)


def test_initial_sigma_of_the_presets() -> None:
    import torch

    image = torch.rand(3, 48, 40, generator=torch.Generator().manual_seed(0))
    for name, sigma_x, sigma_y in (("released", 16, 16), ("paper", 10, 8)):
        gaussians = ua.fit(image, (6, 4), preset=name, steps=0).gaussians
        torch.testing.assert_close(gaussians.sigma_x, torch.full((1, 6, 4), float(sigma_x)))
        torch.testing.assert_close(gaussians.sigma_y, torch.full((1, 6, 4), float(sigma_y)))
        torch.testing.assert_close(gaussians.sigma_r, torch.full((1, 6, 4), 0.12))
        assert not gaussians.theta.any()


def test_a_config_in_the_place_of_a_presets_name_is_told_how_it_is_used():
    image, signal, config = torch.rand(1, 3, 16, 16), torch.rand(1, 2, 4, 4), ua.preset("paper").replace(steps=1)
    with pytest.raises(ValueError, match=r"preset must be a name, got a FitConfig; .* \*\*vars\(config\)"):
        ua.upsample(image, signal, preset=config)
    assert ua.fit(image, (4, 4), **vars(config)).config == config
