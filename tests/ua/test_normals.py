"""Normals of surfaces whose normals are known in closed form."""

import math

import pytest
import torch

from ua import metrics, normals

EVERYWHERE = torch.ones(40, 60, dtype=torch.bool)
FOCAL = 50.0


def plane_depth(normal: torch.Tensor, distance: float = 3.0) -> torch.Tensor:
    """(40, 60) float64: depth of the plane `normal . X = -distance` before a camera at the origin."""
    y = ((torch.arange(40, dtype=torch.float64) - 19.5) / FOCAL)[:, None]
    x = (torch.arange(60, dtype=torch.float64) - 29.5) / FOCAL
    return -distance / (normal[0] * x + normal[1] * y + normal[2])


@pytest.mark.parametrize("direction", [(0.0, 0.0, -1.0), (0.5, 0.1, -1.0), (-0.2, 0.7, -0.9)])
@pytest.mark.parametrize("sigma", [1.0, 5.0])
def test_a_plane_before_a_camera_has_its_normal_up_to_the_border(direction: tuple, sigma: float) -> None:
    normal = torch.tensor(direction, dtype=torch.float64)
    normal = normal / normal.norm()
    valid = EVERYWHERE.clone()
    valid[10:20, 10:30] = False
    depth = plane_depth(normal).masked_fill(~valid, math.nan)
    found, known = normals.from_depth(depth, valid, FOCAL, sigma)
    assert torch.equal(known, valid)
    torch.testing.assert_close(found[:, valid], normal.float()[:, None].expand(-1, int(valid.sum())), atol=1e-4, rtol=0)
    assert (found[:, ~valid] == 0).all()


def test_a_slope_seen_from_above() -> None:
    y, x = torch.arange(40.0)[:, None], torch.arange(60.0)
    height = 3 * x - 2 * y + 7
    found, known = normals.from_height(height, EVERYWHERE, (4.0, 2.0))
    expected = torch.tensor([-3 / 2, 2 / 4, 1.0])
    assert known.all()
    truth = (expected / expected.norm())[:, None, None].expand_as(found)
    assert metrics.normal_angle(found, truth) < 0.01


def test_a_sphere_and_noise() -> None:
    # Centre 10 before the camera, radius 6: depth along each line of sight in closed form.
    y = ((torch.arange(40, dtype=torch.float64) - 19.5) / FOCAL)[:, None]
    x = (torch.arange(60, dtype=torch.float64) - 29.5) / FOCAL
    square = x**2 + y**2 + 1
    root = 10.0**2 - square * (10.0**2 - 6.0**2)
    inside = root > 1
    depth = torch.where(inside, (10 - root.clamp(min=0).sqrt()) / square, 0)
    point = torch.stack([x * depth, y * depth, depth])
    truth = (point - torch.tensor([0, 0, 10.0])[:, None, None]) / 6
    noise = 1 + 0.002 * torch.randn(depth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    narrow, wide = (normals.from_depth(depth * noise, inside, FOCAL, sigma) for sigma in (0.6, 3.0))
    errors = [metrics.normal_angle(found.double(), truth, known) for found, known in (narrow, wide)]
    assert errors[1] < 2 < errors[0]


def test_jumps_are_not_taken_for_surfaces_and_lone_pixels_have_none() -> None:
    depth = torch.ones(40, 60)
    depth[:, 30:] = 4
    _, known = normals.from_depth(depth, EVERYWHERE, FOCAL, 2.0)
    assert not known[:, 29:31].any() and known[:, :20].all() and known[:, 40:].all()
    alone = torch.zeros(40, 60, dtype=torch.bool)
    alone[5, 5] = True
    assert not normals.from_height(depth, alone, (1, 1), 3.0)[1].any()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="focal"):
        normals.from_depth(torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="spacing_x"):
        normals.from_height(torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool), (1, -1))
    with pytest.raises(TypeError, match="valid"):
        normals.from_depth(torch.ones(4, 4), torch.ones(4, 4), 1)
    with pytest.raises(ValueError, match="H, W"):
        normals.from_depth(torch.ones(1, 4, 4), torch.ones(4, 4, dtype=torch.bool), 1)
