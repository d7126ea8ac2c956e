"""Predicted classes as logarithms, and linear discriminants of the guide: a naive solution, and what they do."""

import dataclasses
import math

import pytest
import torch

import ua
from ua import discriminants, refinement, rendering
from ua.degrade import area
from ua.filters import blur
from ua.refinement import prominence, smooth
from ua.regression import means_and_deviations
from ua.rendering import make_guide

GRID, SIZE = (6, 8), (48, 64)


def two_colours(noise=0.0, batch=1):
    """A guide with a slanted border between two colours, and the label of every pixel, (B, H, W)."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    labels = (x + 0.5 * y > 43).long().expand(batch, -1, -1)
    colours = torch.tensor([[0.3, 0.5, 0.6], [0.5, 0.4, 0.3]])
    image = colours[labels].movedim(-1, 1)
    grain = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + noise * grain).clamp(0, 1).contiguous(), labels


def seen(labels, classes=2):
    """Class probabilities of a network that sees each cell through a wide window."""
    maps = torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()
    return 0.9 * area(blur(maps, 8.0), GRID)[0] + 0.1 / classes


def classes_of(count, batch=1, seed=0):
    return torch.randn(batch, count, *GRID, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


def test_logarithms_and_back():
    probabilities = classes_of(5)
    back = discriminants.to_probabilities(discriminants.to_logarithms(probabilities))
    assert (back - probabilities).abs().max() < 1e-6
    one_hot = torch.eye(4).view(1, 4, 2, 2)
    assert (discriminants.to_probabilities(discriminants.to_logarithms(one_hot)) - one_hot).abs().max() < 1e-6
    odd = torch.tensor([[200.0, 100.0, -300.0], [math.nan] * 3, [1.0, 1.0, -math.inf], [-9.0, -9.0, -9.0]])
    found = discriminants.to_probabilities(odd.T[None, :, :, None])[0, :, :, 0].T
    assert found[0].tolist() == [1, 0, 0] and found[1].isnan().all()
    assert found[2] == pytest.approx([0.5, 0.5, 0]) and found[3] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("holes", [False, True], ids=["all valid", "holes"])
def test_they_are_the_naive_ones(holes):
    probabilities = classes_of(3).double()
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    guide = torch.rand(1, 2, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    valid = torch.rand(1, *GRID, generator=torch.Generator().manual_seed(2)) > 0.3 if holes else None
    known = torch.ones(GRID, dtype=torch.float64) if valid is None else valid[0].double()
    centred = guide - guide.mean((2, 3), keepdim=True)
    maps = torch.cat([centred, means_and_deviations(centred, discriminants.WITHIN)[1]], 1)
    number = maps.shape[1]
    means = area(maps, GRID)[0][0].movedim(0, -1)  # [h, w, K]
    products = area(torch.einsum("bixy,bjxy->bijxy", maps, maps).flatten(1, 2), GRID)[0][0]
    products = products.movedim(0, -1).unflatten(-1, (number, number))
    impulses = torch.eye(GRID[0] * GRID[1], dtype=torch.float64).view(-1, 1, *GRID)
    windows = smooth(impulses, discriminants.WINDOW).view(*GRID, *GRID)  # [from, from, at, at]
    slopes, offsets = (torch.zeros(1, 3, *shape, *GRID, dtype=torch.float64) for shape in ((number,), ()))
    for i in range(GRID[0]):
        for j in range(GRID[1]):
            weight = windows[:, :, i, j] * known  # of every cell
            second = torch.einsum("hw,hwij->ij", weight, products)
            class_means = []
            overall = torch.einsum("hw,hwk->k", weight, means) / weight.sum()
            for c in range(3):
                share = weight * probabilities[0, c]
                total = torch.einsum("hw,hwk->k", share, means)
                second = second - torch.outer(total, total) / share.sum()
                prior, doubt = discriminants.PRIOR, discriminants.DOUBT
                weighted = (total + prior * overall) / (share.sum() + prior)
                part = share.sum() / weight.sum()
                variance = (weight * (probabilities[0, c] - part).square()).sum() / weight.sum()
                farther = part * (1 - part) / (doubt * part * (1 - part) + (1 - doubt) * variance)
                class_means.append(overall + farther * (weighted - overall))
            spread = second / weight.sum() + discriminants.RIDGE * torch.eye(number, dtype=torch.float64)
            for c, mean in enumerate(class_means):
                slopes[0, c, :, i, j] = torch.linalg.solve(spread, mean)
                offsets[0, c, i, j] = -0.5 * mean @ slopes[0, c, :, i, j]

    def up(lr_map):
        return torch.nn.functional.interpolate(lr_map, SIZE, mode="bilinear", align_corners=False)

    evidence = up(offsets) + sum(up(slopes[:, :, k]) * maps[:, k : k + 1] for k in range(number))
    evidence = evidence - evidence.mean(1, keepdim=True)
    evidence = evidence - up(area(evidence, GRID)[0])
    found, trust = discriminants.learn(probabilities, guide, valid)
    assert trust.shape == (1, 1, 1, 1) and not trust.requires_grad
    found = found / trust
    assert found.shape == (1, 3, *SIZE) and (found - evidence).abs().max() < 1e-8 * evidence.abs().max()
    assert found.sum(1).abs().max() < 1e-8 and not found.requires_grad


def walls(contrast):
    """A guide of bright tiles between dark walls of four pixels, its labels, and the cells of a network."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    labels = ((x + y // 2) % 21 < 4).long()[None]
    grain = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return (0.6 - contrast * labels[:, None] + 0.03 * grain).clamp(0, 1), labels


def test_colours_are_trusted_where_neighbours_foretell_less():
    guide, labels = walls(0.3)
    shares = torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
    probabilities = 0.8 * area(blur(shares, 2.0), GRID)[0] + 0.1
    trusts = [float(discriminants.learn(probabilities, lab)[1]) for lab in (guide, guide.flip(-1), guide * 0)]
    assert trusts[0] > 1.5 and trusts[1] < 1.2 and trusts[2] == 1, trusts
    other, plain = two_colours(0.05)
    assert float(discriminants.learn(seen(plain), other)[1]) == 1  # neighbours say it all


@pytest.mark.parametrize("cell", [(0, 0), (0, 5), (3, 0), (4, 6)], ids=["corner", "top", "side", "middle"])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_cells_own_class_says_nothing_of_it(rows, cell):
    row, col = min(cell[0], rows - 1), cell[1]
    maps = torch.rand(1, 3, 8 * rows, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr = torch.rand(1, 2, rows, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    said = []
    for share in (0.0, 1.0):
        lr[0, :, row, col] = torch.tensor([share, 1 - share])
        slopes, offsets, left_out = discriminants._discriminants(lr, maps, None)
        full = (offsets + (slopes * area(maps, (rows, 12))[0][:, None]).sum(2))[0, 0, row, col]
        said.append((left_out[0, 0, row, col], full))
    (out_0, full_0), (out_1, full_1) = said
    # Its part in the covariance within classes stays, which moves all classes alike.
    assert abs(out_1 - out_0) < 0.35 * abs(full_1 - full_0) and abs(full_1 - full_0) > 5e-4


@pytest.mark.parametrize("grid", [(8, 8), (1, 32), (16, 16)], ids=str)
def test_colours_that_say_nothing_earn_no_trust(grid):
    random = torch.Generator().manual_seed(5)
    image = blur(torch.rand(1, 3, 8 * grid[0], 8 * grid[1], generator=random), 3.0)
    image = (image - image.amin()) / (image.amax() - image.amin())
    labels = torch.randint(0, 2, (1, *grid), generator=random)
    probabilities = 0.8 * torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float() + 0.1
    assert float(discriminants.learn(probabilities, image)[1]) < 1.1


def test_edges_count_from_smaller_differences_where_colours_are_trusted(monkeypatch):
    guide, labels = walls(0.3)
    shares = torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
    probabilities = 0.8 * area(blur(shares, 2.0), GRID)[0] + 0.1
    plain = make_guide(guide, ua.preset("default"))
    trust = float(discriminants.learn(probabilities, plain)[1])
    looked_at, real = [], rendering.conductances

    def conductances(maps, *rest):
        looked_at.append(maps)
        return real(maps, *rest)

    monkeypatch.setattr(rendering, "conductances", conductances)
    ua.upsample(guide, probabilities, signal_is="prediction")
    assert trust > 1.3
    torch.testing.assert_close(looked_at, [trust * plain], rtol=1e-4, atol=1e-5)


def test_trust_is_the_most_likely_one():
    generator = torch.Generator().manual_seed(3)
    evidence = torch.randn(2, 3, *GRID, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, *GRID, generator=generator) > 0.2
    shares = (1.6 * evidence + 0.3 * torch.randn(evidence.shape, generator=generator)).softmax(1)
    found = discriminants._trust(evidence, shares.masked_fill(~valid[:, None], math.nan), valid)
    for one in range(2):

        def likelihood(trust, one=one):
            total = -0.5 * (trust - 1) ** 2
            for i, j in valid[one].nonzero().tolist():
                near = [(i + a, j + b) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))]
                near = [c for c in near if 0 <= c[0] < GRID[0] and 0 <= c[1] < GRID[1] and valid[(one, *c)]]
                if near:
                    prior = torch.stack([shares[(one, slice(None), *c)] for c in near]).mean(0)
                    score = discriminants.to_logarithms(prior) + trust * evidence[one, :, i, j]
                    total += float(shares[one, :, i, j] @ score.log_softmax(0))
            return total

        best = float(found[one])
        assert 1 < best < discriminants.MOST_TRUST
        assert likelihood(best) > max(likelihood(best - 0.01), likelihood(best + 0.01))


def test_a_border_within_cells_is_found_by_its_texture():
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    labels = (x > 30 + 7 * torch.sin(y / 4)).long()[None].expand(3, -1, -1)  # waves that cells cannot show
    grain = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    guide = 0.5 + 0.1 * grain * labels[:, None]  # whose mean colour tells the kernels nothing
    options = {"signal_is": "prediction", "prefilter": "none"}
    for diffusions, most in ((7, 0.8), (0, 0.97)):  # unmixed, texture says more, but grain, too, until it is smoothed
        results = [
            ua.upsample(guide, seen(labels), discriminants=on, diffusions=diffusions, **options) for on in (True, False)
        ]
        wrong, before = ((result.argmax(1) != labels).float().mean() for result in results)
        assert wrong < most * before and before > 0.02


def test_colours_of_mixed_cells_are_unmixed(monkeypatch):
    """Stripes thinner than cells, in shares of 1/4 to 3/4."""
    share = 0.25 + 0.5 * torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probabilities = torch.cat([share, 1 - share], 1)
    x = (torch.arange(SIZE[1], dtype=torch.float64) + 0.5) / (SIZE[1] / GRID[1]) % 1
    dark = x < share.repeat_interleave(SIZE[0] // GRID[0], 2).repeat_interleave(SIZE[1] // GRID[1], 3)
    guide = torch.where(dark, 0.3, 0.7)
    count = torch.full((1, 2, *GRID), 0.5, dtype=torch.float64)
    pure = discriminants._unmixing(count, count)
    assert torch.equal(pure, torch.ones_like(pure))
    assert torch.allclose(discriminants._unmixing(count, count.square()), pure / discriminants.DOUBT)

    def contrast(doubt):
        monkeypatch.setattr(discriminants, "DOUBT", doubt)
        found = discriminants.learn(probabilities, guide)[0]
        return float(found[:, :1][dark].mean() - found[:, :1][~dark].mean())

    assert contrast(0.2) > 2.5 * contrast(1.0) > 0
    # Without doubt, the means are the two colours: slope times covariance is the mean.
    monkeypatch.setattr(discriminants, "DOUBT", 1e-9)
    seen_means = []
    real = torch.linalg.solve
    monkeypatch.setattr(torch.linalg, "solve", lambda a, b: seen_means.append(b) or real(a, b))
    discriminants.learn(probabilities, guide)
    means = seen_means[0][..., 0, :2] + guide.mean()  # [B, h, w, 2], of the first map, which is the guide's one channel
    assert (means - torch.tensor([0.3, 0.7])).abs().max() < 0.02


def test_a_cell_that_stands_out_is_held_where_the_guide_says_so():
    classes = torch.zeros(GRID, dtype=torch.long)
    classes[3, 4] = 1
    low = 0.9 * torch.nn.functional.one_hot(classes, 2).movedim(-1, 0)[None] + 0.05
    plain = torch.full((1, 3, *SIZE), 0.4)
    spotted = plain.clone()
    spotted[..., 24:32, 32:40] = 0.7
    seen_there, alone = (
        ua.upsample(guide, low, signal_is="prediction")[0, 1, 24:32, 32:40].mean() for guide in (spotted, plain)
    )
    assert seen_there > 0.8 and alone < 0.4
    of_cells, of_map = discriminants.confirmed(torch.full((1, 2, *SIZE), 0.5), low, None)
    assert of_cells.shape == (1, *GRID) and of_cells.max() < 1e-3  # nothing backs it
    assert discriminants.followed(of_cells, of_map).max() < 1e-3


def test_the_less_of_a_map_the_guide_confirms_the_more_loosely_it_is_followed_and_the_wider_it_is_mixed():
    guide, labels = two_colours(0.02)
    clean = seen(labels)
    noise = 2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    ratios, widths = [], []
    for low in (clean, (clean.clamp_min(0.01).log() + noise).softmax(1)):
        mixed = ua.upsample(guide, low, signal_is="prediction", discriminants=False, diffusions=0)
        own, other = prominence(low, None), prominence(area(mixed, GRID)[0], None)
        lesser = torch.minimum(own, other)
        part = lesser.sum() / own.sum()
        of_cells, of_map = discriminants.confirmed(mixed, low, None)
        assert (of_cells - lesser).abs().max() < 1e-5 and abs(of_map.item() - part) < 1e-5
        factors = discriminants.followed(of_cells, of_map)
        assert (factors - discriminants.CONFIRMED * part**discriminants.POWER * lesser).abs().max() < 1e-5
        ratios.append(float((factors / lesser.clamp_min(1e-6)).max()))
        widths.append(discriminants.widening(of_map).item())
    assert ratios[1] < 0.6 * ratios[0], ratios
    assert widths[0] == 1 and 1.1 < widths[1] <= discriminants.WIDEST, widths
    both = discriminants.confirmed(torch.cat([mixed, mixed.flip(2)]), torch.cat([low, low.flip(2)]), None)
    assert (both[0][:1] - of_cells).abs().max() < 1e-5  # an image of a batch is judged by itself
    assert (both[1] - of_map).abs().max() < 1e-5
    valid = torch.ones(1, *GRID, dtype=torch.bool)
    valid[0, 2:4, 3:5] = False
    holes, _ = discriminants.confirmed(mixed, low.masked_fill(~valid[:, None], 0.5), valid)
    assert not holes[~valid].any() and holes[valid].any()
    of_cells, of_map = discriminants.confirmed(mixed, torch.full_like(low, 0.5), None)  # all cells alike
    assert not of_cells.any() and of_map.item() == 1


def test_noise_of_tokens_is_averaged_over_more_cells_and_only_in_its_own_image_of_a_batch(monkeypatch):
    guide, labels = two_colours(0.02)
    clean = seen(labels)
    noise = 2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    noisy = (clean.clamp_min(0.01).log() + noise).softmax(1)
    options = {"signal_is": "prediction", "diffusions": 0}
    alone, sure = (ua.upsample(guide, low, **options) for low in (noisy, clean))
    both = ua.upsample(guide.expand(2, -1, -1, -1), torch.cat([clean, noisy]), **options)
    assert (both - torch.cat([sure, alone])).abs().max() < 1e-5
    monkeypatch.setattr(discriminants, "WIDEST", 1.0)
    narrow = ua.upsample(guide, noisy, **options)
    wrong, before = ((result.argmax(1) != labels).float().mean().item() for result in (alone, narrow))
    assert wrong < 0.2 * before and before > 0.02, (wrong, before)
    assert torch.equal(ua.upsample(guide, clean, **options), sure)


def test_a_guide_that_says_nothing_adds_nothing():
    flat = torch.full((1, 3, *SIZE), 0.4)
    assert discriminants.learn(classes_of(4), flat)[0].abs().max() < 1e-5
    same = torch.full((1, 4, *GRID), 0.25)  # all cells alike: the classes have the same colours
    assert discriminants.learn(same, two_colours(0.05)[0])[0].abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype(dtype):
    guide, labels = two_colours(0.02)
    low = seen(labels)
    expected = ua.upsample(guide, low, signal_is="prediction", backend="reference")
    result = ua.upsample(guide, low.to(dtype), signal_is="prediction", backend="reference")
    assert result.dtype == dtype and (result.sum(1) - 1).abs().max() < 0.02
    assert (result.to(expected) - expected).abs().max() < {torch.float16: 0.02, torch.bfloat16: 0.1}.get(dtype, 1e-4)


def test_probabilities_of_eight_bits():
    guide, labels = two_colours()  # no grain: nothing but the ridge keeps the covariance from being singular
    rounded = (255 * seen(labels)).round() / 255
    result = ua.upsample(guide, rounded + 1 / 255 * torch.tensor([1.0, 0.0])[:, None, None], signal_is="prediction")
    assert result.isfinite().all() and (result.argmax(1) != labels).float().mean() < 0.05


@pytest.mark.parametrize("backend", ["cpu", "torch", "triton"])
def test_backends_agree(backend):
    guide, labels = two_colours(0.02)
    options = {"signal_is": "prediction", "diffusions": 1}
    expected = ua.upsample(guide, seen(labels), backend="reference", **options)
    assert (ua.upsample(guide, seen(labels), backend=backend, **options) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_backends_agree_in_values_and_gradients_through_both_diffusions(backend):
    generator = torch.Generator().manual_seed(0)
    guide, raw = torch.rand(2, 3, *SIZE, generator=generator), 2 * torch.randn(2, 4, *GRID, generator=generator)
    weights, found = torch.randn(2, 4, *SIZE, generator=generator), []
    for name, dtype in (("reference", torch.float64), (backend, torch.float32)):
        values = raw.to(dtype).requires_grad_()
        out = ua.upsample(guide.to(dtype), values.softmax(1), signal_is="prediction", diffusions=3, backend=name)
        found.append((out.double(), torch.autograd.grad((out * weights.to(dtype)).sum(), values)[0].double()))
    for exact, close in zip(*found, strict=True):
        assert (close - exact).abs().max() < 2e-5 * exact.abs().max()


def test_the_order_of_classes_does_not_matter():
    guide, low = two_colours(0.05)[0], classes_of(4)
    one, other = (ua.upsample(guide, some, signal_is="prediction") for some in (low, low.flip(1)))
    assert (one.flip(1) - other).abs().max() < 1e-4


def test_a_clean_border_stays_where_it_is():
    image, labels = two_colours()
    guide = blur(image, 1.0)
    low = area(blur(torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float(), 3.0), GRID)[0]
    result = ua.upsample(guide, low, signal_is="prediction", diffusions=0)
    assert (result.argmax(1) != labels).float().mean() < 0.005


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("size", "grid"), [((1, 1), (1, 1)), ((13, 17), (4, 3)), ((6, 5), (6, 5))], ids=str)
def test_any_guide_grid_and_number_of_classes(channels, size, grid):
    guide = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
    for count in (2, 150):
        low = torch.randn(1, count, *grid, generator=torch.Generator().manual_seed(count)).softmax(1)
        with torch.inference_mode():
            result = ua.upsample(guide, low, signal_is="prediction", guide="identity", prefilter="none")
        assert result.shape == (1, count, *size) and (result.sum(1) - 1).abs().max() < 1e-4


def test_invalid_cells_teach_nothing():
    guide, labels = two_colours(0.05)
    low, valid = seen(labels), torch.ones(1, *GRID, dtype=torch.bool)
    valid[:, 2:4, 2:5] = False
    one, other = (
        ua.upsample(guide, low.masked_fill(~valid[:, None], fill), valid=valid, signal_is="prediction")
        for fill in (torch.nan, 7.0)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    known = ~one.isnan()[:, 0]
    assert known.float().mean() > 0.7 and (one.sum(1)[known] - 1).abs().max() < 1e-5


def test_what_else_is_in_the_batch_does_not_matter():
    guide, labels = two_colours(0.05, batch=4)
    labels[1] = labels[1].roll(16, 1)
    averages = area(torch.nn.functional.one_hot(labels[:1], 2).movedim(-1, 1).float(), GRID)[0]
    features = torch.randn(1, 2, *GRID, generator=torch.Generator().manual_seed(0))
    signals = torch.cat([averages, seen(labels[1:2]), features, seen(labels[:1])])
    together = ua.upsample(guide, signals)
    for i in range(4):
        alone = ua.upsample(guide[i : i + 1], signals[i : i + 1])
        assert (together[i : i + 1] - alone).abs().max() < 1e-5, i
    classes = together[[1, 3]]
    assert classes.min() >= 0 and (classes.sum(1) - 1).abs().max() < 1e-5


def test_averages_and_other_signals_are_left_alone():
    guide, labels = two_colours(0.05)
    averages = area(torch.nn.functional.one_hot(labels, 2).movedim(-1, 1).float(), GRID)[0]
    depth = torch.randn(1, 1, *GRID, generator=torch.Generator().manual_seed(0))
    for signal, kind in ((averages, "average"), (depth, "prediction")):
        one, other = (ua.upsample(guide, signal, signal_is=kind, discriminants=on) for on in (True, False))
        assert torch.equal(one, other)


@pytest.mark.parametrize("of_map", [0.6, 1.0])
def test_gradients_to_the_signal(of_map):
    guide = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw = torch.randn(1, 3, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    evidence = discriminants.learn(raw.softmax(1), guide)
    options = {"signal_is": "prediction", "diffusions": 1, "backend": "reference"}

    def fixed(values):
        """What is learned from the signal is taken as given: so the finite differences must take it, too."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(discriminants, "learn", lambda *_: evidence)
            patch.setattr(
                discriminants, "confirmed", lambda *_: (torch.full((1, 3, 4), 0.7), torch.tensor([[[of_map]]]))
            )
            return ua.upsample(guide, values.softmax(1), **options)

    assert torch.autograd.gradcheck(fixed, (raw.requires_grad_(),))
    ua.upsample(guide, raw.softmax(1), **options)[:, 0].sum().backward()
    assert raw.grad.isfinite().all() and raw.grad.abs().max() > 0


@pytest.mark.parametrize("noise", [0, 2], ids=["clean", "noisy, mixed wider"])
def test_what_is_noise_is_judged_again_after_a_short_diffusion(noise, monkeypatch):
    guide, labels = two_colours(0.02)
    low = seen(labels)
    grain = noise * torch.randn(low.shape, generator=torch.Generator().manual_seed(2))
    low = (low.clamp_min(0.01).log() + grain).softmax(1)
    judged, told, steps = [], [], []
    real = discriminants.confirmed, discriminants.followed, refinement.diffuse

    def confirmed(found, *rest):
        judged.append((found.clone(), *real[0](found, *rest)))
        return judged[-1][1:]

    def followed(*confirmed):
        told.append(confirmed)
        return real[1](*confirmed)

    def diffuse(*arguments, **options):
        steps.append(options["steps"])
        return real[2](*arguments, **options)

    plain = ua.upsample(guide, low, signal_is="prediction", diffusions=0)
    monkeypatch.setattr(discriminants, "confirmed", confirmed)
    monkeypatch.setattr(discriminants, "followed", followed)
    monkeypatch.setattr(refinement, "diffuse", diffuse)
    ua.upsample(guide, low, signal_is="prediction", diffusions=7)
    assert steps == [6, 14] and len(judged) == (3 if noise else 2)
    mixed, diffused = judged[-2:]
    assert (mixed[0] - plain).abs().max() < 1e-5 and (diffused[0] - plain).abs().max() > 0.01
    assert told[0][0] is mixed[1] and told[0][1] is judged[0][2]  # cells by the mixture as it is, the map by the first
    assert told[1][0] is diffused[1] and told[1][1] is diffused[2]
    steps.clear()
    ua.upsample(guide, low, signal_is="prediction", diffusions=1)
    assert steps == [2, 2]


def test_nothing_flows_from_pixels_that_are_not_known():
    guide = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    low = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).expand(-1, -1, 12, 12).contiguous()
    valid = (torch.arange(12) < 4).view(1, 12, 1).expand(-1, -1, 12)
    out = ua.upsample(guide, low, valid=valid, signal_is="prediction")
    known = ~out.isnan()
    assert not known.all() and known[..., :32, :].all()
    assert (out[:, 0][known[:, 0]] - 0.9).abs().max() < 1e-5


def test_given_gaussians_are_not_widened_and_have_gradients():
    guide = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = torch.randn(1, 3, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
    fit = ua.fit(guide, grid=(3, 4), preset="default", signal_is="prediction", diffusions=0)
    seen = []

    def mixed(sigma):
        return ua.render(noisy, guide, fit.gaussians._replace(sigma_x=sigma), config=fit.config, backend="reference")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discriminants, "widening", lambda of_map: seen.append(of_map) or torch.full_like(of_map, 1.5))
        given = mixed(fit.gaussians.sigma_x)
        assert torch.autograd.gradcheck(mixed, (fit.gaussians.sigma_x.clone().requires_grad_(),))
        stepped = fit.gaussians._replace(sigma_x=fit.gaussians.sigma_x.clone().requires_grad_())
        left, wide = (dataclasses.replace(fit, gaussians=maps).render(noisy) for maps in (stepped, fit.gaussians))
    assert seen and (left - given).abs().max() < 1e-6 < (wide - given).abs().max()
