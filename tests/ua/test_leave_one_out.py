"""Gaussians adapted to a signal: the objective against a naive loop, what it helps, and whom it leaves alone."""

import math

import pytest
import torch

import ua
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
            assert moved[0, i, j] == pytest.approx(-leave_one_out.RATE * math.copysign(1, slope), rel=0.05)


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
    assert few.shape == (1, leave_one_out.MOST_CHANNELS, 36)
    exact = torch.cdist(features.flatten(2).mT, features.flatten(2).mT)[0]
    kept = torch.cdist(few.mT, few.mT)[0]
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


def test_the_steps_are_those_of_adam(monkeypatch):
    """The same objective stepped by torch.optim.Adam: `fit` with one step more and more, against the optimiser."""
    signal, guide_lr = scene()
    start = maps(7, 9)
    ours = [leave_one_out.fit(signal[None], guide_lr[None], start, None, steps=n, **OPTIONS) for n in (1, 2, 3)]
    gradients = []
    real = leave_one_out.gradient

    def gradient(*arguments):
        gradients.append(real(*arguments))
        return gradients[-1]

    monkeypatch.setattr(leave_one_out, "gradient", gradient)
    leave_one_out.fit(signal[None], guide_lr[None], start, None, steps=3, **OPTIONS)
    raw = (leave_one_out.WIDER * start.sigma_r).log().requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=leave_one_out.RATE, eps=leave_one_out.EPSILON)
    for gradient, found in zip(gradients, ours, strict=True):
        raw.grad = gradient[3].view(1, 7, 9)
        optimiser.step()
        torch.testing.assert_close(found.sigma_r.log(), raw.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_the_gradient_is_that_of_the_objective(radius):
    """Against autograd in float64, with holes, borders, unequal scales, and an image without a range term."""
    random = torch.Generator().manual_seed(radius)
    signal, guide_lr = torch.rand(2, 5, 6, 7, generator=random), torch.rand(2, 3, 6, 7, generator=random)
    known = torch.rand(2, 6, 7, generator=random) < 0.7
    problem = leave_one_out.problem_of(signal, guide_lr, known, (8.0, 4.0), radius)
    problem = leave_one_out.Problem(*(part.double() if part.is_floating_point() else part for part in problem))
    initial = torch.rand(4, 2, 42, generator=random, dtype=torch.float64) + torch.tensor([1.5, 1, -0.5, -1.5]).view(
        4, 1, 1
    )
    initial[3, 1] = math.inf
    raw = (initial + 0.2 * torch.randn(4, 2, 42, generator=random, dtype=torch.float64)).requires_grad_()
    (expected,) = torch.autograd.grad(leave_one_out.objective(raw, initial, problem), raw)
    found = leave_one_out.gradient(raw.detach(), initial, problem)
    assert expected[:3].abs().amax((1, 2)).min() > 1e-3 and expected[3, 0].abs().max() > 1e-3
    torch.testing.assert_close(found, expected.nan_to_num(0), rtol=1e-9, atol=1e-12)
