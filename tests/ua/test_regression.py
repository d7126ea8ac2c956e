"""Regression of features on statistics of the guide: against a naive solution, what it finds, and whom it leaves."""

import pytest
import torch

import ua
from ua import regression
from ua.degrade import area
from ua.filters import blur


def image(height=96, width=128, batch=1, seed=0):
    """Smooth coloured noise of several sizes, in [0, 1]."""
    noise = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    picture = sum(sigma * blur(noise.roll(int(sigma), 1), sigma) for sigma in (1.0, 3.0, 8.0))
    return ((picture - picture.amin()) / (picture.amax() - picture.amin())).contiguous()


def linear_features(guide, channels=8, seed=1):
    """Features that a regression can find: linear in the statistics, each of variance 1."""
    maps = regression.local_statistics(guide)
    maps = (maps - maps.mean((2, 3), keepdim=True)) / maps.std((2, 3), keepdim=True)
    weights = torch.randn(channels, maps.shape[1], generator=torch.Generator().manual_seed(seed)) / maps.shape[1] ** 0.5
    return torch.einsum("ck,bkhw->bchw", weights, maps)


def test_statistics_of_a_constant_and_of_a_ramp():
    flat = regression.local_statistics(torch.full((2, 3, 20, 24), 0.25))
    assert flat.shape == (2, 5 * 3 + 6, 20, 24)
    means, deviations = flat[:, [0, 1, 2, 3, 4, 5, 9, 10, 11]], flat[:, [6, 7, 8, 12, 13, 14]]
    assert (means[:, :3] == 0.25).all() and means[:, 3:].abs().max() < 1e-6  # these count from the image's mean
    assert deviations.max() < 1e-3 and flat[:, 15:].abs().max() < 1e-3
    ramp = torch.zeros(1, 1, 64, 64, dtype=torch.float64) + 0.01 * torch.arange(64)
    value, _, spread, _, wide, cos, sin, across, down, fine, coarse = regression.local_statistics(ramp)[0, :, 32, 32]
    assert value == ramp[0, 0, 32, 32]
    assert spread == pytest.approx(0.02, rel=0.01) and wide == pytest.approx(0.04, rel=0.01)
    assert across == pytest.approx(0.01) and cos == pytest.approx(0.01, rel=0.01)
    assert max(abs(part) for part in (sin, down, fine, coarse)) < 1e-9


def test_the_ridge_is_the_mean_by_evidence_and_solves_the_normal_equations():
    random = torch.Generator().manual_seed(0)
    inputs, noise = (torch.randn(size, 60, generator=random, dtype=torch.float64) for size in (4, 3))
    outputs = torch.stack([inputs[0] - 2 * inputs[1], inputs.sum(0), torch.zeros(60)]).double() + 0.5 * noise
    within = torch.randn(4, 9, 11, generator=random, dtype=torch.float64)
    within[1] += 0.5 * within[0]
    found = regression._ridge(inputs[None], outputs[None], within[None], torch.tensor([60.0]).double())[0]
    covariance = torch.einsum("kyx,myx->km", within, within) / 99 + regression.LEAST_DEVIATION**2 * torch.eye(4)
    for channel, output in enumerate(outputs):
        evidence = {}
        for ridge in (60 * part for part in regression.RIDGES):
            spread = torch.eye(60) + inputs.T @ torch.linalg.solve(ridge * covariance, inputs)
            variance = output @ torch.linalg.solve(spread, output) / 60  # of the noise, the likeliest
            evidence[ridge] = -30 * variance.log() - spread.logdet() / 2
        ridges, likely = torch.tensor(list(evidence)).double(), torch.stack(list(evidence.values())).softmax(0)
        ridge = regression.CAUTION * (likely * ridges.log()).sum().exp()
        expected = torch.linalg.solve(inputs @ inputs.T + ridge * covariance, inputs @ output)
        assert (found[:, channel] - expected).abs().max() < 1e-6 * expected.abs().max()
    assert found[:, 2].abs().max() < 1e-3 < found[:, 0].abs().max()


@pytest.mark.parametrize("scale", [8, 16])
def test_features_that_follow_the_guide_are_found_within_cells(scale):
    guide = image()
    truth = linear_features(ua.rendering.make_guide(guide, ua.preset("default")))
    low, _ = area(truth, (96 // scale, 128 // scale))
    with_it, without = (ua.upsample(guide, low, regression=on) for on in (True, False))
    error, before = ((result - truth).square().mean().sqrt() for result in (with_it, without))
    assert error < 0.6 * before
    assert (area(with_it, low.shape[-2:])[0] - low).abs().max() < 1e-3  # averages are held as before


def test_noise_is_not_taken_for_a_relation():
    guide = image(128, 128)
    low = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    trend = regression.learn(low, guide, None)
    assert trend.added_to(torch.zeros(1, 8, 128, 128)).std() < 0.05


def ramps(height=96, width=128):
    """(H, W) from 0 to 1 along each axis, and six features made of them (1, 6, H, W)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return x, torch.stack([x, y, x + y, x - y, x * y / 10, x.square() / 10])[None]


@pytest.mark.parametrize("value", [0.5, 230 / 255, 1.0])
def test_a_guide_without_texture_predicts_nothing(value):
    low, _ = area(ramps()[1], (12, 16))
    guide = torch.full((1, 3, 96, 128), value)
    difference = ua.upsample(guide, low) - ua.upsample(guide, low, regression=False)
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("grain", [0.0, 0.01])
@pytest.mark.parametrize("bits", [8, 23])
def test_a_ramp_of_the_guide_is_not_taken_for_the_cause_of_a_ramp_of_the_signal(bits, grain):
    x, truth = ramps()
    noise = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    guide = (((x + grain * noise).clamp(0, 1) * 2**bits).round() / 2**bits).clamp(max=1)
    low, _ = area(truth, (12, 16))
    error, before = ((ua.upsample(guide, low, regression=on) - truth).abs().max() for on in (True, False))
    assert error < 1.02 * before + 1e-3


def test_only_features_are_regressed():
    guide = image(batch=2)
    features = torch.randn(1, 6, 6, 8)
    classes = features.softmax(1)
    assert regression.learn(features[:, :4], guide[:1], None) is None
    assert regression.learn(classes, guide[:1], None) is None
    both = regression.learn(torch.cat([features, classes]), guide, None)
    assert not both.weights[1].any() and not both.low[1].any()
    alone = regression.learn(features, guide[:1], None)
    assert (both.weights[:1] - alone.weights).abs().max() < 1e-5 * alone.weights.abs().max()
    result, expected = (ua.upsample(guide[:1], classes, regression=on) for on in (True, False))
    assert torch.equal(result, expected)


def test_the_unit_of_a_channel_does_not_matter():
    guide = image()
    low, _ = area(linear_features(guide), (12, 16))
    trend, scaled = regression.learn(low, guide, None), regression.learn(-300 * low + 7, guide, None)
    assert (scaled.low + 300 * trend.low).abs().max() < 1e-3 * (300 * trend.low).abs().max()


def test_invalid_cells_reach_nothing():
    guide = image()
    low, _ = area(linear_features(guide), (12, 16))
    valid = torch.ones(1, 12, 16, dtype=torch.bool)
    valid[:, 2:5, 3:9] = False
    results = [ua.upsample(guide, low.masked_fill(~valid[:, None], filler), valid=valid) for filler in (0.0, 1e3)]
    assert torch.equal(results[0].nan_to_num(9), results[1].nan_to_num(9))
    both = torch.cat([low, low.softmax(1)])  # features and probabilities in one batch
    result = ua.upsample(guide.expand(2, -1, -1, -1), both, valid=valid.expand(2, -1, -1))
    assert (result[:1] - results[0]).abs().nan_to_num(0).max() < 1e-4
    assert regression.learn(low, guide, torch.zeros_like(valid)) is None  # no cell says that it is features


def test_images_of_a_batch_have_relations_and_holes_of_their_own():
    guide = image(batch=3)
    low, _ = area(linear_features(guide), (12, 16))
    low[1] *= -2
    valid = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(1)) > 0.2
    valid[2] = True
    together = regression.learn(low, guide, valid)
    for one in range(3):
        alone = regression.learn(*(part[one : one + 1] for part in (low, guide, valid)))
        assert (together.weights[one] - alone.weights[0]).abs().max() < 1e-4 * alone.weights.abs().max()


@pytest.mark.parametrize("valid", [None, 0.7])
def test_gradients_to_the_signal(valid):
    random = torch.Generator().manual_seed(3)
    guide = image(12, 20).double()
    low = torch.randn(1, 5, 3, 5, dtype=torch.float64, generator=random, requires_grad=True)
    mask = None if valid is None else torch.rand(1, 3, 5, generator=random) < valid
    start = torch.randn(1, 5, 12, 20, dtype=torch.float64, generator=random)

    def upsampled(signal):
        trend = regression.learn(signal, guide, mask)
        return trend.added_to(start), trend.low

    assert torch.autograd.gradcheck(upsampled, low)


def test_gradients_reach_a_guide_without_texture():
    guide = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    trend = regression.learn(torch.randn(1, 6, 4, 4), guide, None)
    trend.added_to(torch.zeros(1, 6, 16, 16)).square().sum().backward()
    assert guide.grad.isfinite().all()


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (7, 1), (20, 28), (3, 5)])
def test_any_grid(grid):
    guide = image(20, 28)
    for low in (torch.randn(1, 6, *grid), torch.full((1, 6, *grid), 3.0)):
        result = ua.upsample(guide, low)
        assert result.shape == (1, 6, 20, 28) and result.isfinite().all()
    assert (result - 3).abs().max() < 1e-4  # the constant


@pytest.mark.parametrize("channels", [1, 3, 9])
def test_any_guide(channels):
    guide = torch.rand(1, channels, 24, 32)
    result = ua.upsample(guide, torch.randn(1, 6, 6, 8), preset="released", steps=0, regression=True)
    assert result.shape == (1, 6, 24, 32) and result.isfinite().all()


def test_sums_are_overwritten_only_without_a_gradient():
    guide, low = image(24, 32), torch.randn(1, 6, 6, 8)
    trend, out = regression.learn(low, guide, None), torch.zeros(1, 6, 24, 32)
    assert trend.added_to(out).data_ptr() == out.data_ptr()
    kept = torch.zeros(1, 6, 24, 32, requires_grad=True)
    assert not torch.equal(trend.added_to(kept), kept) and not kept.any()
