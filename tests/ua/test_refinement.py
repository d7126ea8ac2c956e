"""Back-projection and diffusion around a render: what they keep, where nothing flows, and what `signal_is` decides."""

import math

import pytest
import torch

import ua
from ua import refinement
from ua.averages import averages_truth, growth, nothing_share, roughness, variogram_growth
from ua.degrade import area, network_like, one_hot
from ua.refinement import conductances, diffuse, smooth

SETTINGS = {
    "steps": 0,
    "sigma": 0.75,
    "sigma_unit": "cell",
    "radius": 3,
    "sigma_r": 0.1,
    "prefilter": "none",
    "guide": "identity",
    "leave_one_out": 0,
    "back_projections": 0,
    "diffusions": 0,
}


def disc_on_grain():
    """A disc of a faint colour on a grainy guide, and the depth that goes with it, (1, C, 64, 96)."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    inside = (y - 30).square() + (x - 47).square() < 400
    grain = 0.15 * torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    image = (torch.where(inside, 0.5, 0.3) + grain).clamp(0, 1)
    return image, torch.where(inside, 5.0, 1.0)[None, None]


def test_conductance_is_one_on_flat_ground_and_half_at_the_named_difference():
    guide = torch.zeros(1, 1, 8, 40)
    across, down = conductances(guide, 0.1)
    assert across.shape == (1, 8, 39) and down.shape == (1, 7, 40)
    assert torch.equal(across, torch.ones_like(across)) and torch.equal(down, torch.ones_like(down))
    ramp = 0.1 * torch.arange(40.0).expand(1, 1, 8, 40)  # smoothing keeps a ramp but at the border
    across, down = conductances(ramp, 0.1)
    assert across[..., 5:-5] == pytest.approx(torch.full((1, 8, 29), 0.5), abs=1e-5)
    assert down == pytest.approx(torch.ones_like(down))


def test_nothing_flows_from_or_to_unknown_pixels():
    known = torch.ones(1, 8, 8, dtype=torch.bool)
    known[:, 3, 4] = False
    across, down = conductances(torch.zeros(1, 3, 8, 8), 0.1, known)
    assert (across == 0).sum() == 2 and (down == 0).sum() == 2
    assert across[0, 3, 3] == across[0, 3, 4] == down[0, 2, 4] == down[0, 3, 4] == 0


def test_smoothing_is_a_gaussian_filter():
    spike = torch.zeros(1, 2, 21, 21, dtype=torch.float64)
    spike[..., 10, 10] = 1
    result = smooth(spike, 1.5)
    assert result.sum((-2, -1)) == pytest.approx(torch.ones(1, 2, dtype=torch.float64))
    offsets = torch.arange(21) - 10
    variance = (result[0, 0].sum(0) * offsets.square()).sum()
    assert variance.sqrt() == pytest.approx(1.5, rel=0.02)  # a little less: it ends at three standard deviations
    assert torch.equal(result, result.mT)
    constant = torch.full((1, 1, 5, 7), 0.3)
    assert smooth(constant, 1.0) == pytest.approx(constant)


def test_diffusion_ignores_the_grain_of_the_guide_that_a_mixture_copies():
    image, depth = disc_on_grain()
    low, _ = area(depth, (4, 6))

    def error(**options):
        return (ua.upsample(image, low, **SETTINGS | options) - depth).square().mean().sqrt()

    plain, projected = error(), error(back_projections=1)
    diffused = error(back_projections=1, diffusions=12, signal_is="average")
    assert diffused < 0.6 * projected and projected < plain


@pytest.mark.parametrize("size", [(64, 96), (63, 100)], ids=["whole scale", "broken scale"])
def test_the_averages_of_an_average_are_kept(size):
    torch.manual_seed(0)
    image = torch.rand(1, 3, *size)
    low = torch.randn(1, 5, 4, 6)
    fit = ua.fit(image, (4, 6), **SETTINGS | {"diffusions": 12}, signal_is="average")
    kept = area(fit.render(low), (4, 6))[0]
    bound = 1e-5 if size == (64, 96) else 0.05  # cells that share pixels undo a little of each other's
    assert (kept - low).abs().max() < bound
    loose = ua.fit(image, (4, 6), **SETTINGS | {"diffusions": 12}, signal_is="prediction").render(low)
    assert (area(loose, (4, 6))[0] - low).abs().max() > 0.1


def test_a_prediction_is_smoothed_over_more_steps_and_followed_less_in_larger_cells():
    torch.manual_seed(0)
    image, low = torch.rand(1, 3, 32, 64), torch.randn(1, 2, 4, 2)  # cells of 8 x 32 pixels, 16 in the mean
    start = ua.upsample(image, low, **SETTINGS)
    follow, maps = refinement.prominence(low, None), conductances(image, 0.03)
    expected = diffuse(start, low, maps, None, steps=10, share=0.4 / 16, backend="torch", follow=follow)
    options = {**SETTINGS, "diffusions": 5, "signal_is": "prediction", "backend": "torch"}
    assert (ua.upsample(image, low, **options) - expected).abs().max() < 1e-5


def test_a_cell_of_a_pixel_or_two_is_given_no_more_than_it_lacks():
    """However far it stands out: the share that its factor asks for would be 1.6."""
    low = torch.zeros(1, 1, 8, 8)
    low[..., 4, 4] = 1.0
    image = torch.full((1, 3, 8, 8), 0.5)
    image[..., 4, 4] = 1.0
    for size in (8, 12):
        guide = torch.nn.functional.interpolate(image, (size, size))
        result = ua.upsample(guide, low, signal_is="prediction", diffusions=40, regression=False)
        assert result.min() > -0.05 and result.max() < 1.05


def test_images_of_different_kinds_are_refined_as_each_would_be_alone():
    torch.manual_seed(0)
    image, low, out = torch.rand(2, 3, 16, 16), torch.randn(2, 2, 4, 4), torch.randn(2, 2, 16, 16)
    config, kinds = ua.FitConfig(**SETTINGS | {"diffusions": 3}), torch.tensor([True, False])
    both = refinement.refine(out.clone(), low, image, None, config, kinds, "torch")
    for i, alone in enumerate(zip(out.split(1), low.split(1), image.split(1), strict=True)):
        one = refinement.refine(*alone, None, config, kinds[i : i + 1], "torch")
        assert (one[0] - both[i]).abs().max() < 1e-6
        other = refinement.refine(*alone, None, config, ~kinds[i : i + 1], "torch")
        assert (other[0] - both[i]).abs().max() > 0.01


def test_no_diffusions_leave_a_prediction_as_it_is():
    out, low = torch.randn(1, 2, 16, 16), torch.randn(1, 2, 4, 4)
    follow, maps = torch.ones(1, 4, 4), refinement.conductances(torch.rand(1, 3, 16, 16), 0.03)
    same = refinement.diffuse_on_schedule(out, low, maps, None, diffusions=0, backend="torch", follow=follow)
    assert torch.equal(same, out)


def two_regions(rows=12, cols=16):
    """Probabilities (1, 2, h, w) of two regions side by side, with one cell of the other class within the left one."""
    classes = torch.zeros(1, rows, cols, dtype=torch.long)
    classes[..., cols // 2 :] = 1
    classes[:, rows // 2, cols // 4] = 1
    return 0.9 * torch.nn.functional.one_hot(classes, 2).movedim(-1, 1) + 0.05


def test_classes_are_followed_where_they_stand_out():
    factors = refinement.prominence(two_regions(), None)
    assert factors.shape == (1, 12, 16)
    alone, border, inside = factors[0, 6, 4], factors[0, 1, 8], factors[0, 1, 15]
    assert inside < 1e-3 and 0.2 * alone < border < 0.6 * alone and 3 < alone <= refinement.FOLLOWED
    assert torch.equal(refinement.prominence(two_regions().flip(1), None), factors)  # whatever the order of classes
    assert not refinement.prominence(two_regions().requires_grad_(), None).requires_grad


def test_other_signals_are_followed_by_their_standard_deviations():
    depth = torch.randn(1, 2, 12, 16, generator=torch.Generator().manual_seed(0))
    factors = refinement.prominence(depth, None)
    for unit in (1e-30, 1e-13, 5, 1e30):
        assert refinement.prominence(unit * depth, None) == pytest.approx(factors, abs=1e-4)
    assert refinement.prominence(5 * depth + 3, None) == pytest.approx(factors, abs=1e-4)
    both, alone = (refinement.prominence(torch.cat(some), None) for some in ([depth, two_regions()], [two_regions()]))
    assert torch.equal(both[:1], factors) and torch.equal(both[1:], alone)  # each image by itself
    assert not refinement.prominence(torch.full((1, 1, 3, 4), 7.0), None).any()
    outlier = torch.zeros(1, 1, 40, 40)
    outlier[..., 20, 20] = 1e3
    assert refinement.prominence(outlier, None).max() == refinement.FOLLOWED


def test_surroundings_are_valid_cells():
    low, valid = two_regions(), torch.ones(1, 12, 16, dtype=torch.bool)
    valid[..., 8:] = False
    factors = refinement.prominence(low, valid)
    assert not factors[..., 8:].any() and factors[0, 1, 7] < 0.05 * refinement.prominence(low, None)[0, 1, 7]
    spoiled = low.masked_fill(~valid[:, None], 7.0)
    assert torch.equal(refinement.prominence(spoiled, valid), factors)
    assert refinement.prominence(low, ~valid)[0, 6, 4] == 0


def test_a_small_object_of_a_prediction_is_held_by_its_prominence(monkeypatch):
    low, image = two_regions(), torch.full((1, 3, 96, 128), 0.5)  # a guide that tells nothing

    def left():  # of the cell that stands out
        options = SETTINGS | {"diffusions": 10, "signal_is": "prediction", "discriminants": False}
        return ua.upsample(image, low, **options)[0, 1, 48:56, 32:40].mean()

    held = left()
    monkeypatch.setattr(refinement, "prominence", lambda signal, _: torch.ones_like(signal[:, 0]))
    assert held > left() + 0.02


def test_an_average_is_not_smoothed_over_more_steps_than_a_cell_has_pixels():
    assert refinement.schedule(10, 16, average=True) == (10, 1)
    assert refinement.schedule(10, 4.2, average=True) == (4, 1)
    assert refinement.schedule(10, 1, average=True) == (1, 1)
    assert refinement.schedule(0, 4, average=True)[0] == refinement.schedule(0, 4, average=False)[0] == 0
    image, low = torch.rand(1, 3, 16, 16), torch.randn(1, 2, 4, 4)  # cells of 4 x 4 pixels
    few, many = (ua.upsample(image, low, **SETTINGS | {"diffusions": n}, signal_is="average") for n in (4, 12))
    assert torch.equal(few, many)


def test_a_prediction_gets_no_back_projection():
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    low = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    plain = ua.upsample(image, low, **SETTINGS)
    assert torch.equal(ua.upsample(image, low, **SETTINGS | {"back_projections": 3}, signal_is="prediction"), plain)
    assert not torch.equal(ua.upsample(image, low, **SETTINGS | {"back_projections": 3}, signal_is="average"), plain)


def test_holes_stay_and_do_not_spread():
    image, depth = disc_on_grain()
    low, _ = area(depth, (4, 6))
    valid = torch.ones(1, 4, 6, dtype=torch.bool)
    valid[0, :3, :4] = False
    options = {**SETTINGS, "radius": 1, "diffusions": 12, "back_projections": 1}
    plain = ua.upsample(image, low, valid=valid, **SETTINGS | {"radius": 1})
    for kind in ("average", "prediction", "auto"):
        result = ua.upsample(image, low, valid=valid, signal_is=kind, **options)
        assert torch.equal(result.isnan(), plain.isnan()) and plain.isnan().any()
        assert result[~result.isnan()].min() > 0


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_backends_agree_and_so_do_their_gradients(backend):
    torch.manual_seed(0)
    image, low = torch.rand(2, 3, 20, 27), torch.randn(2, 3, 3, 4)
    valid = torch.rand(2, 3, 4) > 0.2
    options = {**SETTINGS, "diffusions": 5, "back_projections": 1, "signal_is": "average", "valid": valid}
    seen = []
    for name in ("reference", backend):
        signal = low.clone().requires_grad_()
        result = ua.upsample(image, signal, backend=name, **options)
        result.nan_to_num().square().sum().backward()
        seen.append((result.detach().nan_to_num(), signal.grad))
    for ours, theirs in zip(*seen, strict=True):
        assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_gradients_of_the_image_pass_the_conductances():
    image = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    low = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    gaussians = ua.fit(image.detach(), (2, 2), **SETTINGS).gaussians
    config = ua.FitConfig(**SETTINGS | {"diffusions": 3}, signal_is="average", edge=0.3)

    def render(pixels):
        return ua.render(low, pixels, gaussians, config=config, backend="torch")

    assert torch.autograd.gradcheck(render, image, atol=1e-6)


def test_half_precision_is_rounded_once():
    torch.manual_seed(0)
    image, low = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4).half()
    options = {**SETTINGS, "diffusions": 12, "signal_is": "average"}
    exact = ua.upsample(image, low.float(), **options)
    assert torch.equal(ua.upsample(image, low, **options), exact.half())


def test_a_batch_is_decided_item_by_item():
    depth = torch.zeros(2, 1, 16, 16)
    depth[:, :, :, 8:] = 4.0
    depth[1] += torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert averages_truth(depth).tolist() == [True, False]
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    both = ua.upsample(image, depth)
    for item in (0, 1):
        assert torch.equal(both[item : item + 1], ua.upsample(image[item : item + 1], depth[item : item + 1]))


def test_averages_and_predictions_of_labels_are_told_apart():
    labels = torch.zeros(128, 160, dtype=torch.int64)
    labels[30:90, 40:120] = 1
    labels[60:, 100:] = 2
    maps, _ = one_hot(labels, 3)
    average, _ = area(maps, (16, 20))
    assert averages_truth(average[None]).all()
    softmax = torch.softmax(6 * average + torch.randn(average.shape, generator=torch.Generator().manual_seed(0)), 0)
    assert not averages_truth(softmax[None]).any()
    predicted, _ = network_like(maps, (16, 20), seed=0)
    predicted = predicted.clamp(min=0)
    assert not averages_truth((predicted / predicted.sum(0))[None]).any()


def test_averages_and_predictions_of_depth_are_told_apart():
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(160.0), indexing="ij")
    depth = (2 + 0.01 * x + torch.where((y - 60).square() + (x - 80).square() < 900, -1.0, 0.0))[None]
    assert averages_truth(area(depth, (16, 20))[0][None]).all()
    assert not averages_truth(network_like(depth, (16, 20), seed=0)[0][None]).any()


def fractal(size, exponent):
    """Heights whose amplitudes fall with that power of the frequency, (size, size); 2 is like terrain."""
    y, x = torch.fft.fftfreq(size)[:, None], torch.fft.fftfreq(size)
    frequency = (y.square() + x.square()).sqrt()
    frequency[0, 0] = torch.inf
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return torch.fft.ifft2(torch.fft.fft2(noise) * frequency**-exponent).real


@pytest.mark.parametrize("scale", [8, 16])
@pytest.mark.parametrize("exponent", [2.0, 2.5])
def test_averages_and_predictions_of_terrain_are_told_apart(exponent, scale):
    heights = fractal(256, exponent)[None]
    grid = (256 // scale, 256 // scale)
    assert averages_truth(area(heights, grid)[0][None]).all()
    assert not averages_truth(network_like(heights, grid, seed=0)[0][None]).any()


@pytest.mark.parametrize("scene", ["membranes", "clutter"])
def test_averages_and_predictions_of_labels_as_fine_as_the_cells_are_told_apart(scene):
    """Few cells hold one class alone, in a small grid."""
    fields = torch.stack([fractal(144, 2.0).roll((31 * i, 57 * i), (0, 1)) for i in range(6)])
    labels = (fields[0].abs() < 0.2 * fields[0].std()).long() if scene == "membranes" else fields.argmax(0)
    maps, _ = one_hot(labels, int(labels.max()) + 1)
    average, _ = area(maps, (12, 12))
    assert averages_truth(average[None]).all()
    predicted, _ = network_like(maps, (12, 12), seed=0)
    predicted = predicted.clamp(min=0)
    assert not averages_truth((predicted / predicted.sum(0))[None]).any()
    assert not averages_truth((4 * (average + 0.01).log()).softmax(0)[None]).any()  # as sharp as it comes, but no 0


def test_growth_and_nothing_of_what_is_known():
    everywhere = torch.ones(64, 64, dtype=torch.bool)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    assert growth((x.square() + y.square())[None], everywhere) == 4
    noise = torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    assert growth(noise, everywhere.repeat(4, 4)) == pytest.approx(1, abs=0.03)
    assert growth(noise[:, :4, :4], everywhere[:4, :4]) == 0  # no five in a row
    assert nothing_share(torch.tensor([[0.0, 0.0, 0.5, 0.04], [1.0, 1.0, 0.5, 0.96]])) == pytest.approx(2 / 3)
    assert nothing_share(torch.full((2, 4), 0.5)) == 0


def test_averages_of_features_are_smoother_than_what_is_seen_at_the_middle_of_a_cell():
    random = torch.Generator().manual_seed(0)
    frequency = torch.hypot(torch.fft.fftfreq(160)[:, None], torch.fft.rfftfreq(160)).clamp_min(1 / 160)
    for _ in range(3):  # amplitudes fall with the frequency, as in photographs
        spectrum = torch.fft.rfft2(torch.randn(1, 8, 160, 160, generator=random)) / frequency
        features = torch.fft.irfft2(spectrum, s=(160, 160))
        seen, averages = features[..., 4::8, 4::8], area(features, (20, 20))[0]
        both = torch.cat([seen, averages])
        holes = torch.rand(2, 20, 20, generator=random) < 0.8
        spoiled = both.masked_fill(~holes[:, None], torch.nan)
        assert averages_truth(both).tolist() == averages_truth(spoiled, holes).tolist() == [False, True]


def test_growth_of_the_variogram():
    everywhere = torch.ones(64, 64, dtype=torch.bool)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    assert variogram_growth(torch.stack([x + y, -3 * x]), everywhere) == pytest.approx(4, rel=0.01)
    noise = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert variogram_growth(noise, everywhere) == pytest.approx(1, abs=0.05)
    few = torch.tensor([[True, False, True, True]])  # one pair next to each other, one two apart
    assert variogram_growth(torch.tensor([[[0.0, torch.nan, 2.0, 3.0]]]), few) == 4
    assert variogram_growth(noise[:, :1, :2], everywhere[:1, :2]) == math.inf


def test_what_cannot_be_judged_counts_as_an_average():
    assert averages_truth(torch.randn(1, 8, 2, 2)).all()  # no cells two apart
    assert averages_truth(torch.full((1, 8, 5, 5), 2.0)).all()
    assert averages_truth(torch.randn(1, 1, 2, 2)).all()  # no three cells in a row
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert averages_truth(torch.randn(1, 1, 16, 16), nothing).all()


def test_roughness_of_a_ramp_and_of_noise():
    everywhere = torch.ones(64, 64, dtype=torch.bool)
    ramp = torch.arange(64.0).expand(1, 64, 64).clone()
    assert roughness(ramp, everywhere) == 0
    noise = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert roughness(noise, everywhere) == pytest.approx(0.6745, abs=0.03)
    ramp[0, 10, 10] = float("nan")
    holes = everywhere.clone()
    holes[10, 10] = False
    assert roughness(ramp, holes) == 0


def test_errors_name_the_field():
    for field, value, error in (
        ("signal_is", "mean", ValueError),
        ("diffusions", -1, ValueError),
        ("edge", 0, ValueError),
    ):
        with pytest.raises(error, match=field):
            ua.FitConfig(**{field: value})


def test_a_backend_of_ones_own_has_the_diffusion_of_the_library(monkeypatch):
    image, low = torch.rand(1, 3, 16, 16), torch.randn(1, 2, 4, 4)
    chosen = ua.upsample(image, low, backend="kernels.bilateral.torch", **SETTINGS | {"diffusions": 4})
    assert (chosen - ua.upsample(image, low, backend="torch", **SETTINGS | {"diffusions": 4})).abs().max() < 1e-5


def test_rates_are_stable():
    """Conductances of 1 everywhere have the largest eigenvalue, 8: nothing may grow there."""
    checkerboard = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1)[None, None]
    guide, nothing = torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 4, 4)
    result = diffuse(checkerboard, nothing, conductances(guide, 1.0), None, steps=200, share=1.0, backend="cpu")
    assert result.abs().max() < 0.006  # measured: .0045; a cycle of n steps leaves 1 / (2 n + 1) far from the border
    assert 1.9 < 8 * refinement.RATE <= 2  # more would grow, less be slow


def test_what_cells_lack_is_added_bicubic():
    torch.manual_seed(0)
    out, signal = torch.zeros(2, 3, 40, 51, dtype=torch.float64), torch.randn(2, 3, 5, 7, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(signal, (40, 51), mode="bicubic", align_corners=False)
    assert (refinement.back_project(out, signal, None) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("surface", ["sphere", "bowl", "perspective plane", "constant with rounding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_smooth_surfaces_are_averages(surface, dtype):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    depth = {
        "sphere": 3 - (2.5 - x.square() - y.square()).sqrt(),
        "bowl": x.square() + y.square(),
        "perspective plane": 1 / (1 + 0.3 * x + 0.5 * y),
        "constant with rounding": 3 + x.square() + 1e-6 * torch.randn(256, 256),
    }[surface]
    assert averages_truth(area(depth[None], (16, 16))[0][None].to(dtype)).all()


def test_the_smallest_edge_is_no_division_by_nothing():
    for edge in (1e-30, 1e-23, 1e9):
        across, down = conductances(torch.rand(1, 3, 8, 8) * torch.tensor([0.0, 1.0]).repeat(4), edge)
        assert across.isfinite().all() and down.isfinite().all()
    flat, _ = conductances(torch.full((1, 3, 8, 8), 0.5), 1e-3)
    assert flat.min() > 0.999
