"""What is kept between calls serves other dtypes, gradients and traces as well as what is made anew."""

import pytest
import torch

from ua import filters, kept, refinement
from ua.degrade import area


def blurred(image):
    return filters.blur(image, 1.5)


def projected(image):
    signal = torch.zeros(1, 1, 3, 4, dtype=image.dtype)
    return refinement.back_project(image.clone(), signal, None)


def averaged(image):
    return area(image, (3, 4))[0]


USERS = [blurred, projected, averaged]


def image(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 1, 17, 23, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("use", USERS)
def test_made_in_inference_mode_it_serves_gradients(use, monkeypatch):
    forget(monkeypatch)
    with torch.inference_mode():
        expected = use(image())
    leaf = image().requires_grad_()
    out = use(leaf)
    out.sum().backward()
    assert torch.equal(out.detach(), expected) and leaf.grad.isfinite().all()


@pytest.mark.parametrize("use", USERS)
def test_each_dtype_has_its_own(use, monkeypatch):
    forget(monkeypatch)
    single, double = use(image()), use(image().double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use", USERS)
def test_a_trace_leaves_nothing_behind(use, monkeypatch):
    forget(monkeypatch)

    class Module(torch.nn.Module):
        def forward(self, picture):
            return use(picture)

    program = torch.export.export(Module(), (image(),), strict=False)
    torch.testing.assert_close(use(image(1)), program.module()(image(1)))


def test_a_result_is_made_once_and_the_oldest_forgotten():
    made = []

    @kept.kept
    def row(size):
        made.append(size)
        return torch.zeros(size)

    assert row(3) is row(3) and made == [3]
    for size in range(4, 4 + kept.MOST):
        row(size)
    row(3)
    assert made.count(3) == 2


def test_filters_in_blocks_are_the_filter():
    """More rows than a block, fewer than the filter reaches, and all borders."""
    for height in (3, 128, 129, 300):
        rows = torch.rand(1, 1, height, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(height))
        reach = 12
        kernel = filters._kernel(3.0, 1, reach)
        places = (torch.arange(height)[:, None] + torch.arange(-reach, reach + 1)).clamp(0, height - 1)
        expected = torch.einsum("hk,bchkw->bchw", kernel.expand(height, -1), rows[:, :, places])
        torch.testing.assert_close(filters._filtered_rows(rows, 3.0, 1, reach), expected, rtol=1e-12, atol=1e-14)


def forget(monkeypatch):
    """Every kept function as if the process had just begun."""
    for module, name in ((filters, "_filter_matrix"), (refinement, "interpolation_weights")):
        monkeypatch.setattr(module, name, kept.kept(getattr(module, name).__wrapped__))
