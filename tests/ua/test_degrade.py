"""Area averages and signals like a network's, against a naive loop, PyTorch's pooling and conservation laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ua.degrade import area, area_weights, network_like, one_hot


def naive_area(signal: torch.Tensor, grid: tuple[int, int], valid: torch.Tensor) -> torch.Tensor:
    """Average over the valid part of each cell's rectangle, pixel by pixel; NaN where there is none."""
    channels, height, width = signal.shape
    result = torch.full((channels, *grid), math.nan, dtype=torch.float64)
    for i in range(grid[0]):
        for j in range(grid[1]):
            total, weight = torch.zeros(channels, dtype=torch.float64), 0.0
            for y in range(height):
                for x in range(width):
                    tall = min(y + 1, (i + 1) * height / grid[0]) - max(y, i * height / grid[0])
                    wide = min(x + 1, (j + 1) * width / grid[1]) - max(x, j * width / grid[1])
                    if tall > 1e-9 and wide > 1e-9 and valid[y, x]:
                        total += tall * wide * signal[:, y, x]
                        weight += tall * wide
            if weight:
                result[:, i, j] = total / weight
    return result


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_area_agrees_with_a_naive_loop(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    grid = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    signal = torch.rand(2, height, width, generator=generator, dtype=torch.float64)
    valid = torch.rand(height, width, generator=generator) > data.draw(st.sampled_from([-1.0, 0.5, 2.0]))
    expected = naive_area(signal, grid, valid)
    hidden = torch.where(valid, signal, math.nan)  # an unknown pixel must not be read
    lr, lr_valid = area(hidden, grid, valid)
    assert torch.equal(lr_valid, expected[0].isfinite())
    torch.testing.assert_close(lr, expected.nan_to_num(0), atol=1e-12, rtol=1e-12)


def test_a_whole_scale_is_average_pooling() -> None:
    signal = torch.rand(2, 3, 24, 40)
    lr, valid = area(signal, (3, 10))
    torch.testing.assert_close(lr, torch.nn.functional.avg_pool2d(signal, (8, 4)))
    assert valid.shape == (2, 3, 10) and valid.all()


def test_a_real_scale_keeps_the_mean_and_a_ramp() -> None:
    """Adaptive pooling keeps neither: its windows overlap where the scale is no integer."""
    signal = torch.rand(1, 37, 53, dtype=torch.float64)
    assert area(signal, (5, 7))[0].mean().item() == pytest.approx(signal.mean().item(), abs=1e-12)
    # Pixel x stands for [x, x + 1] with value x + .5: a cell of whole pixels gets its centre, ...
    ramp = (torch.arange(30, dtype=torch.float64) + 0.5).expand(1, 2, 30)
    torch.testing.assert_close(area(ramp, (1, 10))[0][0, 0], (torch.arange(10).double() + 0.5) * 3)
    # ... and scale 1 is the identity.
    assert torch.equal(area(signal, (37, 53))[0], signal)


@pytest.mark.parametrize(("size", "cells"), [(1, 1), (7, 7), (7, 3), (100, 33), (1411, 320), (1000, 1)])
def test_weights_partition_the_axis(size: int, cells: int) -> None:
    weights = area_weights(size, cells)
    torch.testing.assert_close(weights.sum(1), torch.ones(cells).double())
    torch.testing.assert_close(weights.sum(0), torch.full((size,), cells / size).double())
    assert (weights >= 0).all()
    assert (weights > 0).sum() <= size + cells


def test_masks_of_one_image_and_of_a_batch() -> None:
    signal = torch.rand(2, 3, 8, 8)
    one = torch.ones(8, 8, dtype=torch.bool)
    one[:4, :4] = False
    lr, valid = area(signal, (2, 2), one)
    assert valid.tolist() == [[[False, True], [True, True]]] * 2
    assert (lr[:, :, 0, 0] == 0).all()
    each = torch.stack([one, ~one])
    lr, valid = area(signal, (2, 2), each)
    assert torch.equal(valid[1], ~valid[0])
    torch.testing.assert_close(lr[0], area(signal[0], (2, 2), one)[0])


def test_gradients_reach_the_known_pixels_only() -> None:
    signal = torch.rand(1, 6, 6, requires_grad=True)
    valid = torch.rand(6, 6) > 0.5
    area(signal, (2, 3), valid)[0].sum().backward()
    assert signal.grad is not None
    assert torch.equal(signal.grad[0] > 0, valid)


def test_one_hot_leaves_void_without_a_class() -> None:
    maps, valid = one_hot(torch.tensor([[0, 2], [-1, 2]]), 3)
    assert maps.tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 1], [0, 1]]]
    assert valid.tolist() == [[True, True], [False, True]]
    assert one_hot(torch.zeros(4, 2, 2, dtype=torch.int32), 3)[0].shape == (4, 3, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: area(torch.rand(4, 4), (2, 2)), ValueError, "signal must be"),
        (lambda: area([[1.0]], (1, 1)), TypeError, "signal"),  # type: ignore[arg-type]
        (lambda: area(torch.rand(1, 4, 4), (5, 2)), ValueError, "1 to 4 cells"),
        (lambda: area(torch.rand(1, 4, 4), (0, 2)), ValueError, "1 to 4 cells"),
        (lambda: area(torch.rand(1, 4, 4), 2), TypeError, "grid must be a pair of integers"),  # type: ignore[arg-type]
        (lambda: area(torch.rand(1, 4, 4), (2.0, 2)), TypeError, "grid must be"),  # type: ignore[arg-type]
        (lambda: area(torch.rand(1, 4, 4), (2, 2, 2)), TypeError, "grid must be"),  # type: ignore[arg-type]
        (lambda: area(torch.rand(1, 4, 4), (2, 2), torch.ones(4, 4)), TypeError, "valid"),
        (lambda: area(torch.rand(1, 4, 4), (2, 2), torch.ones(4, 5) > 0), ValueError, "valid"),
        (lambda: one_hot(torch.rand(2, 2), 3), TypeError, "labels"),
        (lambda: one_hot(torch.zeros(0, 2).long(), 3), ValueError, "labels must not be empty"),
        (lambda: one_hot(torch.tensor([[-1]]), 0), ValueError, "num_classes at least 1"),
        (lambda: one_hot(torch.tensor([[3]]), 3), ValueError, "labels must be -1"),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


# --- like a network's


def smooth(height: int, width: int) -> torch.Tensor:
    """Two channels, a sine and a ramp, that a cell's average and its middle agree on, nearly."""
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    return torch.stack([torch.sin(3 * x + 2 * y), (x + y).expand(height, width)])


def test_without_jitter_blur_and_noise_it_samples_the_middle_of_every_cell() -> None:
    truth = smooth(24, 36)
    low, known = network_like(truth, (8, 12), jitter=0, blur=0, noise=0, seed=0)
    torch.testing.assert_close(low, truth[:, 1::3, 1::3])
    assert known.all() and known.shape == (8, 12)


def test_jitter_displaces_by_no_more_than_it_says_and_blur_widens() -> None:
    ramp = torch.arange(64.0).expand(1, 64, 64)  # its value is the place
    straight = network_like(ramp, (8, 8), jitter=0, blur=0.1, noise=0, seed=0)[0]
    moved = network_like(ramp, (8, 8), jitter=0.6, blur=0.1, noise=0, seed=0)[0]
    offsets = (moved - straight)[0, :, 1:-1] / 8
    assert 0.4 < offsets.abs().max() <= 0.6 + 0.1 and offsets.std() > 0.2
    edge = (ramp >= 36).float()
    widths = [network_like(edge, (8, 8), jitter=0, blur=blur, noise=0, seed=0)[0][0, 4].std() for blur in (0.1, 1.5)]
    assert widths[1] < widths[0]


def test_a_constant_stays_and_the_seed_decides() -> None:
    constant = torch.full((3, 20, 30), 2.5)
    low, known = network_like(constant, (4, 7), seed=1)
    torch.testing.assert_close(low, torch.full((3, 4, 7), 2.5))
    assert known.all()
    truth = smooth(20, 30)
    one, again, other = (network_like(truth, (4, 7), seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_noise_is_a_share_of_each_channels_spread() -> None:
    truth = torch.cat([smooth(64, 64)[:1], 100 * smooth(64, 64)[:1]])
    quiet = network_like(truth, (32, 32), noise=0, seed=3)[0]
    loud = network_like(truth, (32, 32), noise=0.1, seed=3)[0]
    share = (loud - quiet).std((1, 2)) / quiet.std((1, 2))
    torch.testing.assert_close(share, torch.full((2,), 0.1), atol=0.01, rtol=0)


def test_unknown_pixels_are_never_read() -> None:
    truth, valid = smooth(32, 32), torch.ones(32, 32, dtype=torch.bool)
    valid[:, 16:] = False
    spoiled = torch.where(valid, truth, torch.nan)
    low, known = network_like(spoiled, (8, 8), valid, jitter=0, seed=0)
    assert low.isfinite().all() and known[:, :4].all() and not known[:, 7].any()
    assert (low[:, ~known] == 0).all()
    one = network_like(torch.where(valid, 1.0, torch.inf)[None], (8, 8), valid, seed=0)[0]
    torch.testing.assert_close(one[0, :, :3], torch.ones(8, 3))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"blur": -1}, "blur"), ({"jitter": math.nan}, "jitter"), ({"noise": -0.1}, "noise"), ({"grid": (9, 2)}, "grid")],
)
def test_bad_degradations_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        network_like(torch.rand(1, 8, 8), **{"grid": (2, 2), "seed": 0} | options)
