"""Pictures of Gaussians: outlines are level lines of the operator's own score, weights are those of its own render."""

import matplotlib
import numpy as np
import pytest
import torch

import ua
from kernels.geometry import centres
from ua import plots, plots_gaussians

IMAGE = torch.rand(1, 3, 24, 36, generator=torch.Generator().manual_seed(0))
GRID = (4, 6)


def some_gaussians():
    random = torch.Generator().manual_seed(1)
    maps = torch.rand(4, 1, *GRID, generator=random)
    return ua.Gaussians(1 + 8 * maps[0], 1 + 8 * maps[1], 6 * maps[2] - 3, 0.01 + maps[3])


def test_an_outline_is_where_the_score_is_that_of_its_standard_deviations():
    gaussians = some_gaussians()
    lines = torch.from_numpy(plots_gaussians.outlines(gaussians, (24, 36), size=0.7))
    assert lines.shape == (24, plots_gaussians.POINTS, 2)
    ux, uy, vx, vy, _ = (lr_map[0].double().flatten()[:, None] for lr_map in gaussians.factors())
    y, x = torch.meshgrid(centres(4, 24), centres(6, 36), indexing="ij")
    dx, dy = lines[..., 0] - x.flatten()[:, None], lines[..., 1] - y.flatten()[:, None]
    scores = -(ux * dx + uy * dy).square() - (vx * dx + vy * dy).square()
    torch.testing.assert_close(scores, torch.full_like(scores, -0.5 * 0.7**2), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("every", "cells"), [(1, 24), (2, 6), (3, 4), (9, 1)])
def test_one_cell_in_so_many_from_the_middle(every, cells):
    lines = plots_gaussians.outlines(some_gaussians(), (24, 36), every=every)
    assert len(lines) == cells
    if every == 9:  # rows 0 to 3, columns 0 to 5: one and two cells are left out before the one that is drawn
        np.testing.assert_allclose(lines.mean(1), [[2.5 * 6 - 0.5, 1.5 * 6 - 0.5]])


def test_ellipses_share_one_colour_scale(tmp_path):
    start = some_gaussians()
    sets = {"before": start, "after": start._replace(sigma_r=start.sigma_r / 10)}
    figure = plots_gaussians.ellipses(IMAGE[0], sets)
    left, right, bar = figure.axes
    assert (left.get_title(), right.get_title(), bar.get_ylabel()) == ("before", "after", "$\\sigma_r$ (guide units)")
    edges = [axes.collections[1].get_edgecolor() for axes in (left, right)]
    assert all(len(colours) == 24 for colours in edges) and not np.allclose(*edges)
    low, high = bar.get_ylim()
    np.testing.assert_allclose([low, high], [float(start.sigma_r.min()) / 10, float(start.sigma_r.max())], rtol=1e-4)
    colours = matplotlib.colormaps["plasma"]
    largest = edges[0][start.sigma_r.flatten().argmax()]
    np.testing.assert_allclose(largest, colours(1.0), atol=0.01)
    plots.save(figure, tmp_path / "ellipses.png")
    assert (tmp_path / "ellipses.png").stat().st_size > 5000


def test_one_sigma_r_everywhere_has_a_colour_scale_all_the_same():
    flat = some_gaussians()._replace(sigma_r=torch.full((1, *GRID), 0.12))
    bar = plots_gaussians.ellipses(IMAGE[0], {"start": flat}).axes[1]
    low, high = bar.get_ylim()
    assert low < 0.12 < high and high / low == pytest.approx(10**plots_gaussians.LEAST_DECADE)


@pytest.mark.parametrize("preset", ["released", "default"])
def test_weights_are_those_of_the_mixture(preset):
    fit = ua.fit(IMAGE, GRID, preset=preset, backend="torch")
    signal = torch.rand(1, 1, *GRID, generator=torch.Generator().manual_seed(2))
    plain = fit.config.replace(back_projections=0, diffusions=0, assignments=0)
    mixed = ua.render(signal, IMAGE, fit.gaussians, config=plain, backend="torch")
    for y, x in ((0, 0), (11, 17), (23, 35)):
        weights = plots_gaussians.pixel_weights(fit, (y, x))
        assert weights.shape == GRID and (weights >= 0).all()
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
        assert float((weights * signal[0, 0]).sum()) == pytest.approx(float(mixed[0, 0, y, x]), abs=1e-5)


def test_the_strongest_cell_has_the_strongest_colour_and_the_pixel_a_ring():
    weights = torch.zeros(GRID)
    weights[2, 3] = 0.6
    picture = plots_gaussians.weights_over(IMAGE[0], weights, (3, 3))
    faded = plots_gaussians.faded(IMAGE[0])
    assert picture.shape == (24, 36, 3) and picture.min() >= 0 and picture.max() <= 1
    cell = picture[12:18, 18:24]
    np.testing.assert_allclose(
        cell, 0.1 * faded[12:18, 18:24] + 0.9 * np.array(matplotlib.colormaps["plasma"](1.0)[:3])
    )
    np.testing.assert_allclose(picture[12:18, 24:], faded[12:18, 24:])
    assert not picture[3, 7].any() and (picture[3, 8] == 1).all()  # black at radius 4, white around


def test_bad_arguments():
    fit = ua.fit(IMAGE, GRID, steps=0)
    with pytest.raises(ValueError, match=r"pixel must be \(y, x\) within 24 x 36, got \(24, 0\)"):
        plots_gaussians.pixel_weights(fit, (24, 0))
    with pytest.raises(ValueError, match="at least one"):
        plots_gaussians.ellipses(IMAGE[0], {})
    with pytest.raises(ValueError, match="every must be >= 1 and size > 0, got 0 and 0.5"):
        plots_gaussians.ellipses(IMAGE[0], {"a": fit.gaussians}, every=0)
