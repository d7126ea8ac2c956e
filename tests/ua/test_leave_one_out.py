"""Gaussians adapted to a signal: what it helps, and whom it leaves alone. The steps: `tests/kernels`."""

import math

import pytest
import torch

import ua
from kernels.leave_one_out import RATE
from ua import leave_one_out
from ua.degrade import area

OPTIONS = {"scale": (8.0, 4.0), "radius": 2}


def maps(rows, cols, seed=0):
    random = torch.Generator().manual_seed(seed)
    spread = torch.rand(4, 1, rows, cols, generator=random)
    return ua.Gaussians(4 + 4 * spread[0], 3 + 4 * spread[1], 2 * spread[2] - 1, 0.1 + spread[3])


def left_out_by_loops(signal, guide_lr, gaussians, valid, scale, radius):
    """Prediction of every cell from the others, (C, h, w), one pair after the other; NaN without candidates."""
    channels, rows, cols = signal.shape
    result = torch.full_like(signal, math.nan)
    for i in range(rows):
        for j in range(cols):
            total, mass = torch.zeros(channels, dtype=signal.dtype), 0.0
            for k in range(rows):
                for m in range(cols):
                    far = (i - k) ** 2 + (j - m) ** 2
                    if far == 0 or far > radius**2 or not valid[k, m]:
                        continue
                    dy, dx = (i - k) * scale[0], (j - m) * scale[1]
                    sx, sy, theta, sr = (float(lr_map[0, k, m]) for lr_map in gaussians)
                    along = dx * math.cos(theta) + dy * math.sin(theta)
                    across = -dx * math.sin(theta) + dy * math.cos(theta)
                    apart = float((guide_lr[:, i, j] - guide_lr[:, k, m]).square().sum())
                    weight = math.exp(-((along / sx) ** 2) / 2 - (across / sy) ** 2 / 2 - apart / (2 * sr**2))
                    total, mass = total + weight * signal[:, k, m], mass + weight
            if mass > 0:
                result[:, i, j] = total / mass
    return result


def error(signal, guide_lr, gaussians, valid):
    """Mean absolute error over known cells that have a candidate."""
    predicted = left_out_by_loops(signal, guide_lr, gaussians, valid, **OPTIONS)
    counts = valid & ~predicted[0].isnan()
    return (predicted - signal)[:, counts].abs().mean()


def scene(rows=7, cols=9):
    """A guide whose left half is texture that means nothing; the colours of its right half are those of the signal."""
    random = torch.Generator().manual_seed(1)
    guide = torch.rand(1, rows, cols, generator=random)
    signal = torch.where(torch.arange(cols) < cols // 2, torch.zeros(rows, cols), (guide[0] > 0.5).float())[None]
    return signal, guide


def test_steps_predict_left_out_cells_better_and_agree_with_a_loop():
    signal, guide_lr = scene()
    valid = torch.ones(7, 9, dtype=torch.bool)
    valid[2, 3] = valid[5, 7] = False
    start = maps(7, 9)
    errors = []
    for steps in (1, 5, 20):
        found = leave_one_out.fit(signal[None], guide_lr[None], start, valid[None], steps=steps, **OPTIONS)
        assert all(lr_map.isfinite().all() for lr_map in found) and not found.theta.requires_grad
        errors.append(float(error(signal, guide_lr, found, valid)))
    wider = start._replace(sigma_r=leave_one_out.WIDER * start.sigma_r)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.8 * float(error(signal, guide_lr, wider, valid))


def test_the_first_step_goes_down_the_gradient_of_the_loop():
    """Adam's first step has the length of the rate and the sign of the gradient, here taken by finite differences."""
    signal, guide_lr = scene(3, 4)
    signal, guide_lr = signal.double(), guide_lr.double()
    valid = torch.ones(3, 4, dtype=torch.bool)
    start = ua.Gaussians(*(lr_map.double() for lr_map in maps(3, 4)))
    found = leave_one_out.fit(signal[None], guide_lr[None], start, None, steps=1, **OPTIONS)
    moved = (found.sigma_r / (leave_one_out.WIDER * start.sigma_r)).log()
    begin = start._replace(sigma_r=leave_one_out.WIDER * start.sigma_r)
    for i, j in ((0, 0), (1, 2), (2, 3)):
        changed = []
        for sign in (1, -1):
            sigma_r = begin.sigma_r.clone()
            sigma_r[0, i, j] *= math.exp(1e-3 * sign)
            changed.append(error(signal, guide_lr, begin._replace(sigma_r=sigma_r), valid))
        slope = float(changed[0] - changed[1]) / 2e-3 * signal.numel() / signal.std(correction=0)
        if abs(slope) > 0.05:
            assert moved[0, i, j] == pytest.approx(-RATE * math.copysign(1, slope), rel=0.05)


def test_unknown_cells_say_nothing():
    signal, guide_lr = scene()
    valid = torch.rand(1, 7, 9, generator=torch.Generator().manual_seed(2)) > 0.3
    results = []
    for unknown in (0.0, 1e6, math.nan):
        values = signal[None].masked_fill(~valid[:, None], unknown)
        results.append(leave_one_out.fit(values, guide_lr[None], maps(7, 9), valid, steps=5, **OPTIONS))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing_to_predict_from_leaves_the_start():
    start = maps(1, 1)
    for valid in (None, torch.zeros(1, 1, 1, dtype=torch.bool)):
        found = leave_one_out.fit(torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1), start, valid, steps=5, **OPTIONS)
        assert all(torch.equal(a, b) for a, b in zip(found, start, strict=True))


def test_images_of_a_batch_do_not_mix_and_the_unit_does_not_matter():
    signal, guide_lr = scene()
    other = torch.rand(1, 7, 9, generator=torch.Generator().manual_seed(5))
    together = leave_one_out.fit(
        torch.stack([signal, other]),
        torch.stack([guide_lr, guide_lr]),
        ua.Gaussians(*(lr_map.repeat(2, 1, 1) for lr_map in maps(7, 9))),
        None,
        steps=5,
        **OPTIONS,
    )
    alone = leave_one_out.fit(1000 * signal[None] + 7, guide_lr[None], maps(7, 9), None, steps=5, **OPTIONS)
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[:1], theirs, rtol=1e-3, atol=1e-4)


def test_many_channels_are_projected_and_keep_their_distances():
    features = torch.randn(1, 200, 6, 6, generator=torch.Generator().manual_seed(0))
    known = torch.ones(1, 6, 6, dtype=torch.bool)
    few = leave_one_out.normalised(features, known)
    assert few.shape == (1, leave_one_out.MOST_CHANNELS, 6, 6)
    exact = torch.cdist(features.flatten(2).mT, features.flatten(2).mT)[0]
    kept = torch.cdist(few.flatten(2).mT, few.flatten(2).mT)[0]
    ratio = (kept / exact)[~torch.eye(36, dtype=torch.bool)]
    assert ratio.std() < 0.3 * ratio.mean()


def test_the_library_adapts_averages_and_leaves_predictions_alone():
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 48, 64, generator=random)
    depth = torch.where(torch.arange(64) < 29, 1.0, 3.0).expand(1, 48, 64)
    low = area(depth, (6, 8))[0][None]
    options = {"diffusions": 0, "back_projections": 0}
    plain = {
        kind: ua.upsample(image, low, signal_is=kind, leave_one_out=0, **options) for kind in ("average", "prediction")
    }
    adapted = {kind: ua.upsample(image, low, signal_is=kind, **options) for kind in ("average", "prediction")}
    assert torch.equal(plain["average"], plain["prediction"]) and torch.equal(
        plain["prediction"], adapted["prediction"]
    )
    truth = depth[None]
    assert (adapted["average"] - truth).square().mean() < 0.8 * (plain["average"] - truth).square().mean()
    fit = ua.fit(image, (6, 8), **options)
    kept = fit.gaussians.sigma_r.clone()
    fit.render(low)
    assert torch.equal(fit.gaussians.sigma_r, kept)


def test_a_batch_of_both_kinds_goes_item_by_item():
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    low = torch.zeros(2, 1, 16, 16)
    low[:, :, :, 8:] = 4.0
    low[1] += torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    both = ua.upsample(image, low)
    for item in (0, 1):
        torch.testing.assert_close(both[item : item + 1], ua.upsample(image[item : item + 1], low[item : item + 1]))


def test_in_inference_mode():
    signal, guide_lr = scene()
    expected = leave_one_out.fit(signal[None], guide_lr[None], maps(7, 9), None, steps=3, **OPTIONS)
    with torch.inference_mode():
        inside, beside = scene()
        found = leave_one_out.fit(inside[None] * 1, beside[None] * 1, maps(7, 9), None, steps=3, **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize(
    "parameterisation", ["anisotropic", "fixed", "isotropic", "log_covariance", "no_range", "shared_range"]
)
def test_every_parameterisation_adapts(parameterisation, backend):
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    ramp = torch.arange(6.0).expand(1, 1, 4, 6)
    found = ua.upsample(image, ramp, parameterisation=parameterisation, backend=backend)
    assert found.isfinite().all() and (area(found, (4, 6))[0] - ramp).abs().max() < 0.01


def test_an_image_with_nothing_to_predict_keeps_its_start_beside_others():
    signal, guide_lr = scene()
    valid = torch.ones(2, 7, 9, dtype=torch.bool)
    valid[1] = False
    valid[1, 3, 3] = True
    start = ua.Gaussians(*(lr_map.repeat(2, 1, 1) for lr_map in maps(7, 9)))
    pair = (torch.stack([signal] * 2), torch.stack([guide_lr] * 2))
    found = leave_one_out.fit(*pair, start, valid, steps=3, **OPTIONS)
    for ours, given in zip(found, start, strict=True):
        assert torch.equal(ours[1], given[1])
    assert not torch.equal(found.sigma_r[0], start.sigma_r[0])


def test_gaussians_that_somebody_steps_stay_theirs():
    image, low = torch.rand(1, 3, 32, 48), torch.arange(6.0).expand(1, 1, 4, 6)
    fit = ua.fit(image, (4, 6))
    own = ua.Gaussians(*(lr_map.clone().requires_grad_() for lr_map in fit.gaussians))
    fit.with_gaussians(own).render(low).square().sum().backward()
    assert own.sigma_r.grad is not None and own.sigma_r.grad.any()


def test_which_images_have_something_to_predict():
    known = torch.zeros(6, 4, 5, dtype=torch.bool)
    pairs = [((0, 0), (0, 1)), ((0, 0), (1, 1)), ((3, 4), (1, 4)), ((2, 3), (3, 1)), ((0, 0), (3, 4)), ((2, 2), (2, 2))]
    for image, cells in enumerate(pairs):
        for row, col in cells:
            known[image, row, col] = True
    found = [leave_one_out.can_predict(known, radius).tolist() for radius in (1, 2, 3)]
    assert found[0] == [True, False, False, False, False, False]
    assert found[1] == [True, True, True, False, False, False]
    assert found[2] == [True, True, True, True, False, False]
