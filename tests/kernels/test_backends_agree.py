"""Every backend against the reference in float64 on the same numbers: values, every gradient, and the loss of the fit.

Bounds are a few times what was measured. In float32 they are a multiple of its rounding (6e-8), and scores of a
thousand are rounded a thousand times more coarsely than scores of one, in any backend: so the bound grows with the best
score of the worst pixel. Values are of unit scale (standard normal signals); gradients are counted in units of their
largest value.
"""

from types import ModuleType

import pytest
import torch
from compare import Problem, assert_near, assert_same_gradients, largest_score, make_problem, truth

from kernels.bilateral import cpu, reference
from kernels.bilateral import torch as blocks

EPS = 2.0**-24  # rounding of a float32
BACKENDS = {"torch": blocks, "cpu": cpu}

CASES: dict[str, dict] = {
    "plain": {},
    "odd-sizes": {"grid": (5, 7), "size": (33, 61), "radius": 3, "border": "clamp"},
    "sizes-63-100": {"grid": (7, 9), "size": (63, 100), "radius": 4},
    "scale-1": {"grid": (9, 11), "size": (9, 11), "radius": 3},
    "scale-1-clamp": {"grid": (9, 11), "size": (9, 11), "radius": 3, "border": "clamp"},
    "scale-barely-above-1": {"grid": (9, 11), "size": (10, 12), "radius": 2},
    "one-row": {"grid": (1, 6), "size": (3, 30), "radius": 3, "border": "clamp"},
    "one-column": {"grid": (6, 1), "size": (30, 1), "radius": 3},
    "grid-larger-than-support": {"grid": (16, 16), "size": (64, 64), "radius": 2},
    "support-larger-than-grid": {"grid": (3, 4), "size": (20, 20), "radius": 8, "border": "clamp"},
    "support-larger-than-grid-drop": {"grid": (3, 4), "size": (20, 20), "radius": 8},
    "unequal-scales": {"grid": (4, 8), "size": (60, 24), "border": "clamp"},
    "non-integer-scales": {"grid": (7, 5), "size": (100, 63), "radius": 3},
    "G=1": {"guide_channels": 1},
    "G=4": {"guide_channels": 4, "border": "clamp"},
    "G=7": {"guide_channels": 7, "border": "clamp"},
    "C=1": {"channels": 1},
    "C=21": {"channels": 21, "border": "clamp"},
    "C=384": {"channels": 384},
    "C=1000": {"channels": 1000, "grid": (3, 3), "size": (11, 11)},
    "batch-3": {"batch": 3, "border": "clamp"},
    "radius-map": {"grid": (6, 6), "size": (30, 30), "radius": 4, "radius_map": True},
    "radius-map-clamp": {"grid": (6, 6), "size": (30, 30), "radius": 4, "radius_map": True, "border": "clamp"},
    "holes": {"grid": (9, 9), "size": (40, 40), "valid": 0.1, "batch": 2},
    "holes-clamp": {"grid": (9, 9), "size": (40, 40), "valid": 0.1, "border": "clamp"},
    "holes-and-radius-map": {
        "grid": (6, 6),
        "size": (30, 30),
        "radius": 4,
        "radius_map": True,
        "valid": 0.1,
        "border": "clamp",
    },
    "narrow-and-long": {"grid": (6, 6), "size": (48, 48), "radius": 3, "sigma": (0.2, 20), "sigma_in_cells": False},
    "very-flat": {
        "grid": (6, 6),
        "size": (48, 48),
        "radius": 8,
        "sigma": (100, 200),
        "sigma_r": (50, 90),
        "border": "clamp",
    },
    "cell-of-1600-pixels": {"grid": (2, 2), "size": (80, 80), "radius": 1},
    "cell-300-wide": {"grid": (2, 2), "size": (12, 600), "border": "clamp"},
    "cell-300-high": {"grid": (2, 2), "size": (600, 12), "border": "clamp"},
    "released-support": {
        "grid": (16, 16),
        "size": (112, 112),
        "radius": 8,
        "sigma": (1, 1.5),
        "sigma_r": (0.1, 0.2),
        "border": "clamp",
    },
}
# Best scores of hundreds and thousands: the exponentials' reference has to move, again and again.
SHARP = {"grid": (6, 6), "size": (48, 48), "radius": 3}
NARROW, PICKY = {"sigma": (0.2, 0.2), "sigma_in_cells": False}, {"sigma_r": (0.005, 0.005)}
SHARP_CASES: dict[str, dict] = {
    "sharp-in-space-and-range": SHARP | NARROW | PICKY,
    "sharp-in-range": SHARP | PICKY,
    "sharp-and-clamped": SHARP | NARROW | PICKY | {"border": "clamp"},
    "sharp-with-radius-map": SHARP | NARROW | PICKY | {"radius_map": True, "border": "clamp"},
    "sharp-in-range-with-radius-map": SHARP | PICKY | {"radius": 4, "radius_map": True},
    "sharp-with-holes": SHARP | NARROW | PICKY | {"valid": 0.3, "batch": 2},
    "sharp-with-holes-and-radius-map": SHARP | PICKY | {"valid": 0.5, "radius_map": True},
    "sharp-seven-channels": SHARP | PICKY | {"guide_channels": 7},
    "some-sharp-some-flat": SHARP | {"sigma": (0.2, 30), "sigma_in_cells": False, "sigma_r": (0.003, 1)},
}
ALL = CASES | SHARP_CASES
# Gradients of the factors are 0, so they are no unit to count errors in.
ONE_CANDIDATE_CASES: dict[str, dict] = {
    "one-cell": {"grid": (1, 1), "size": (13, 9), "radius": 3},
    "one-cell-clamp": {"grid": (1, 1), "size": (13, 9), "radius": 3, "border": "clamp"},
    "one-cell-one-pixel": {"grid": (1, 1), "size": (1, 1), "border": "clamp"},
    "radius-0": {"radius": 0},
}


def each(cases: dict[str, dict]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("options", cases.values(), ids=cases)


each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)


# --- values and gradients


@each(ALL)
def test_torch_in_float64_is_the_reference(options: dict) -> None:
    problem = make_problem(**options).to(torch.float64)
    assert_near(problem.render(blocks), problem.render(reference), largest=2e-12, rms=1e-13)
    found, expected = (problem.gradients(backend, of_guide=True) for backend in (blocks, reference))
    assert set(found) == {"signal", "guide", "guide_lr", "ux", "uy", "vx", "vy", "r"}
    assert_same_gradients(found, expected, largest=2e-12, rms=2e-13)


@each_backend
@each(ALL)
def test_values_in_float32(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**options)
    score = largest_score(problem)
    assert_near(problem.render(backend), truth(problem), largest=1e-5 + 2 * EPS * score, rms=1e-6 + 0.02 * EPS * score)


@each_backend
@each(ALL)
def test_gradients_in_float32(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**options)
    score = largest_score(problem)
    expected = problem.to(torch.float64).gradients(reference)
    largest, rms = 2e-5 + 2 * EPS * score, 2e-6 + 0.3 * EPS * score
    assert_same_gradients(problem.gradients(backend), expected, largest=largest, rms=rms)


@each_backend
@each(ONE_CANDIDATE_CASES)
def test_one_candidate(backend: ModuleType, options: dict) -> None:
    # Nothing to weigh: the output is the one value and no factor has a gradient, rounding apart.
    problem = make_problem(**options)
    assert_near(problem.render(backend), truth(problem), largest=1e-6, rms=3e-7)
    gradients, expected = problem.gradients(backend), problem.to(torch.float64).gradients(reference)
    assert_near(gradients.pop("signal"), expected["signal"], largest=3e-5, rms=1e-5)
    for name, gradient in gradients.items():
        assert gradient.abs().max() < 1e-4, name


@each_backend
def test_isolated_cells(backend: ModuleType) -> None:
    # Gaussians so narrow that every pixel copies its owner: gradients of the factors vanish, to 0 or nearly.
    problem = make_problem(**SHARP, **NARROW)
    assert_near(problem.render(backend), truth(problem), largest=1e-6, rms=3e-7)
    for name, gradient in problem.gradients(backend).items():
        assert gradient.isfinite().all() and (name == "signal" or gradient.abs().max() < 1e-3), name


@each_backend
@pytest.mark.parametrize(
    "options", [{}, {"radius_map": True, "batch": 2}, {"valid": 0.3}], ids=["plain", "map", "holes"]
)
def test_gradients_flow_through_some_inputs_only(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**options)
    all_gradients = problem.gradients(backend)
    signal = problem.signal.clone().requires_grad_()
    render = backend.render(
        signal,
        problem.guide,
        problem.guide_lr,
        problem.factors,
        support=problem.support,
        radius=problem.radius,
        valid=problem.valid,
    )
    coefficients = torch.randn(render.shape, generator=torch.Generator().manual_seed(99))
    coefficients = (8 * coefficients).round() / 8
    (render.masked_fill(~problem.reached()[:, None], 0) * coefficients).sum().backward()
    assert torch.equal(signal.grad, all_gradients["signal"])


# --- the loss of the fit

LOSS_CASES = {
    "plain": {},
    "batch-3": {"batch": 3, "border": "clamp"},
    "G=1": {"guide_channels": 1},
    "G=4": {"guide_channels": 4},
    "G=7": {"guide_channels": 7},
    "non-integer-scales": {"grid": (7, 5), "size": (100, 63), "radius": 3},
    "radius-map": {"grid": (6, 6), "size": (30, 30), "radius": 4, "radius_map": True, "border": "clamp"},
    "released-support": CASES["released-support"],
    "cell-of-1600-pixels": {"grid": (2, 2), "size": (80, 80), "radius": 1},
    "sharp": SHARP | NARROW | PICKY,
    "sharp-with-radius-map": SHARP | PICKY | {"radius_map": True, "border": "clamp"},
}


@pytest.mark.parametrize("options", LOSS_CASES.values(), ids=LOSS_CASES)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(blocks, torch.float64), (blocks, torch.float32), (cpu, torch.float32)],
    ids=["torch64", "torch", "cpu"],
)
def test_reconstruction_l1(backend: ModuleType, dtype: torch.dtype, options: dict) -> None:
    problem = make_problem(**options, reconstruct=True)
    exact, gradients = problem.to(torch.float64).loss_and_gradients(reference)
    loss, found = problem.to(dtype).loss_and_gradients(backend)
    assert loss.dtype == dtype and loss.shape == (len(problem.guide),)
    if dtype == torch.float64:
        assert_near(loss, exact, largest=1e-13, rms=1e-13)
        assert_same_gradients(found, gradients, largest=1e-11, rms=1e-12)
        return
    score = largest_score(problem)
    assert_near(loss, exact, largest=1e-6 + 0.02 * EPS * score, rms=1e-6 + 0.02 * EPS * score)
    # |.| has a kink: where rounding flips the sign of a difference, a whole pixel's slope flips. Random pictures keep
    # such pixels rare.
    assert_same_gradients(found, gradients, largest=2e-4 + 2 * EPS * score, rms=1e-4 + EPS * score)


# --- low precision signals


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each({name: ALL[name] for name in ("plain", "holes", "C=384", "released-support")})
def test_low_precision_signals_lose_only_what_the_cast_loses(
    backend: ModuleType, dtype: torch.dtype, options: dict
) -> None:
    problem = make_problem(**options)
    problem = Problem(**{**vars(problem), "signal": problem.signal.to(dtype)})
    exact, out = truth(Problem(**{**vars(problem), "signal": problem.signal.double()})), problem.render(backend)
    assert out.dtype == dtype
    cast_error = (exact.to(dtype).double() - exact).nan_to_num(0.0)
    assert_near(
        out,
        exact,
        largest=float(cast_error.abs().max()) + 1e-5,
        rms=float(cast_error.square().mean().sqrt()) + 1e-6,
    )
    gradients = problem.gradients(backend)
    expected = Problem(**{**vars(problem), "signal": problem.signal.double()}).to(torch.float64).gradients(reference)
    half = torch.finfo(dtype).eps / 2
    assert gradients["signal"].dtype == dtype
    assert_same_gradients(
        {"signal": gradients.pop("signal")}, {"signal": expected.pop("signal")}, largest=half + 1e-5, rms=half
    )
    assert_same_gradients(gradients, expected, largest=2e-5, rms=2e-6)


# --- what must not matter


@each_backend
def test_strides_do_not_matter(backend: ModuleType) -> None:
    problem = make_problem(grid=(5, 6), size=(23, 31), batch=2, channels=5, radius_map=True, valid=0.5, border="clamp")

    def scattered(tensor: torch.Tensor | None) -> torch.Tensor | None:
        """The same numbers, transposed in memory and with gaps."""
        if tensor is None:
            return None
        holder = tensor.new_zeros((*tensor.shape[:-2], tensor.shape[-1], 2 * tensor.shape[-2]))
        view = holder[..., ::2].mT
        view.copy_(tensor)
        assert not view.is_contiguous()
        return view

    spread = Problem(
        scattered(problem.signal),
        scattered(problem.guide),
        scattered(problem.guide_lr),
        type(problem.factors)(*(scattered(lr_map) for lr_map in problem.factors)),
        problem.support,
        scattered(problem.radius),
        scattered(problem.valid),
    )
    assert torch.equal(spread.render(backend).nan_to_num(), problem.render(backend).nan_to_num())
    expected = problem.gradients(backend)
    for name, gradient in spread.gradients(backend).items():
        assert_near(gradient, expected[name], largest=1e-6, rms=1e-6, unit=float(expected[name].abs().max()))


@each_backend
def test_inputs_are_left_as_they_are(backend: ModuleType) -> None:
    problem = make_problem(batch=2, radius_map=True, valid=0.5)
    before = make_problem(batch=2, radius_map=True, valid=0.5)
    problem.gradients(backend)
    for name in ("signal", "guide", "guide_lr", "radius", "valid"):
        assert torch.equal(getattr(problem, name), getattr(before, name)), name
    assert all(torch.equal(a, b) for a, b in zip(problem.factors, before.factors, strict=True))


@each_backend
@pytest.mark.parametrize(
    "options", [{}, {"radius_map": True, "valid": 0.5, "border": "clamp"}], ids=["plain", "map-and-holes"]
)
def test_images_of_a_batch_do_not_mix(backend: ModuleType, options: dict) -> None:
    problem = make_problem(**{"grid": (5, 6), "size": (33, 40), "batch": 3, "channels": 6} | options)
    together, gradients = problem.render(backend), problem.gradients(backend)
    for image in range(3):
        alone = problem.item(image)
        assert_near(together[image : image + 1], alone.render(backend), largest=1e-6, rms=2e-7)
        poisoned = Problem(**{**vars(problem), "signal": problem.signal.clone()})
        poisoned.signal[torch.arange(3) != image] = 1e20
        assert torch.equal(poisoned.render(backend)[image].nan_to_num(), together[image].nan_to_num())
        assert all(gradient[image].isfinite().all() for gradient in gradients.values())
