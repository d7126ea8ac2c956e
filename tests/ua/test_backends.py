"""Choosing a backend."""

import importlib.util
from pathlib import Path

import pytest
import torch

import ua
from kernels.bilateral import cpu, reference, triton
from kernels.bilateral import torch as blocks
from ua import backends

IMAGE = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
SIGNAL = torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(1))

# A backend of one's own: a module with `refuses`, `render` and `reconstruction_l1`.
OWN = """
from kernels.bilateral.reference import reconstruction_l1, refuses
from kernels.bilateral.reference import render as reference_render
calls = []

def render(*arguments, **options):
    calls.append(1)
    return reference_render(*arguments, **options)
"""


def test_by_name() -> None:
    for name, module in {"reference": reference, "torch": blocks, "cpu": cpu}.items():
        assert backends.choose(name, SIGNAL, IMAGE) is module


def test_auto_is_the_fastest_that_can() -> None:
    assert backends.choose("auto", SIGNAL, IMAGE) is cpu
    assert backends.choose("auto", SIGNAL.half(), IMAGE) is cpu
    assert backends.choose("auto", SIGNAL.double(), IMAGE) is blocks
    assert backends.choose("auto", SIGNAL, IMAGE.double()) is blocks
    assert backends.choose("auto", SIGNAL, IMAGE.clone().requires_grad_()) is blocks


def test_auto_without_numba_is_the_portable_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "numba" in str(cpu.refuses(SIGNAL, IMAGE))
    assert backends.choose("auto", SIGNAL, IMAGE) is blocks


def test_every_backend_has_the_same_three_functions() -> None:
    import inspect

    for module in (blocks, cpu, triton):
        for function in ("refuses", "render", "reconstruction_l1"):
            parameters = inspect.signature(getattr(module, function)).parameters
            assert list(parameters) == list(inspect.signature(getattr(reference, function)).parameters), function


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'gpu'"):
        backends.choose("gpu", SIGNAL, IMAGE)
    with pytest.raises(ValueError, match=r"unknown backend 'refrence'; did you mean 'reference'"):
        backends.check_name("refrence")


def test_a_refusal_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match=r"backend='cpu' cannot compute this: .*float64"):
        backends.choose("cpu", SIGNAL.double(), IMAGE)


@pytest.mark.parametrize("preset", list(ua.PRESETS))
def test_all_agree_on_a_whole_upsampling(preset: str) -> None:
    # Without a fit to the image or the signal, whose steps may amplify rounding; test_fitting.py compares fits.
    image, signal = IMAGE.double(), SIGNAL.double()
    exact = ua.upsample(image, signal, preset=preset, backend="reference", steps=0, leave_one_out=0)
    assert (
        ua.upsample(image, signal, preset=preset, backend="torch", steps=0, leave_one_out=0) - exact
    ).abs().max() < 1e-7
    assert (
        ua.upsample(IMAGE, SIGNAL, preset=preset, backend="cpu", steps=0, leave_one_out=0) - exact
    ).abs().max() < 1e-5


def test_a_backend_of_ones_own_by_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_backends").mkdir()
    (tmp_path / "own_backends" / "counting.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    mixture = {"back_projections": 0, "diffusions": 0, "leave_one_out": 0}  # of other operators, it is "auto"
    found = ua.upsample(IMAGE, SIGNAL, backend="own_backends.counting", **mixture)
    from own_backends import counting

    assert counting.calls == [1]
    assert torch.equal(found, ua.upsample(IMAGE, SIGNAL, backend="reference", **mixture))


# --- the Triton backend through the library, on a GPU or under Triton's interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not here")


@needs_triton
@pytest.mark.parametrize("preset", ["default", "released", "paper"])
def test_triton_is_torch_in_every_preset(preset: str) -> None:
    steps = 0 if preset == "default" else 2
    image, signal = IMAGE.to(DEVICE), SIGNAL.to(DEVICE)
    ours, theirs = (
        ua.upsample(image, signal, preset=preset, steps=steps, backend=backend) for backend in ("triton", "torch")
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@needs_triton
@pytest.mark.parametrize("parameterisation", ["isotropic", "log_covariance", "no_range", "shared_range", "fixed"])
def test_triton_fits_every_parameterisation(parameterisation: str) -> None:
    options = {"preset": "released", "steps": 2, "radius": 2, "parameterisation": parameterisation}
    ours, theirs = (ua.fit(IMAGE.to(DEVICE), (2, 3), backend=backend, **options) for backend in ("triton", "torch"))
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-3, atol=0)


@needs_triton
def test_triton_keeps_half_precision_and_its_gradient() -> None:
    signal = SIGNAL.to(DEVICE).half().requires_grad_()
    out = ua.upsample(IMAGE.to(DEVICE), signal, back_projections=0, diffusions=0, backend="triton")
    assert out.dtype == torch.float16
    out.sum().backward()
    # Weights of a pixel sum to one.
    assert signal.grad is not None
    torch.testing.assert_close(float(signal.grad.float().sum()), float(out.numel()), rtol=2e-3, atol=0)


@needs_triton
def test_triton_tells_why_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"backend='triton' cannot compute this: .*float64"):
        ua.upsample(IMAGE.to(DEVICE), SIGNAL.to(DEVICE).double(), backend="triton")
