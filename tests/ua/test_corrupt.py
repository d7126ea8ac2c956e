"""Corrupted guides: rates, and the same for the same seed."""

import pytest
import torch

from ua import corrupt
from ua.corrupt import CORRUPTIONS


@pytest.fixture
def image() -> torch.Tensor:
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(0)), (120, 160), mode="bicubic"
    )[0]
    return (0.3 + 0.4 * smooth).clamp(0.05, 0.95)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_one_is_an_image_and_repeats(name: str, image: torch.Tensor) -> None:
    first, again, other = (corrupt.corrupt(image, name, seed) for seed in (0, 0, 1))
    assert first.shape == image.shape and first.dtype == image.dtype
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again)
    assert torch.equal(first, image) == (name == "clean")
    assert torch.equal(first, other) == (name in ("clean", "blur", "jpeg"))


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_the_share_of_salt_and_pepper(share: float, image: torch.Tensor) -> None:
    spoiled = corrupt.corrupt(image, f"salt_and_pepper_{round(100 * share)}")
    changed = (spoiled != image).any(0)
    assert changed.float().mean() == pytest.approx(share, abs=0.01)
    values = spoiled[:, changed]
    assert ((values == 0) | (values == 1)).all() and (values[0] == values[1]).all()
    assert values.mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(spoiled[:, ~changed], image[:, ~changed])


def test_the_others_do_what_they_say(image: torch.Tensor) -> None:
    noisy = corrupt.gaussian_noise(torch.full((3, 100, 100), 0.5), 0, sigma=20 / 255)
    assert noisy.std() == pytest.approx(20 / 255, rel=0.03)
    dark = corrupt.corrupt(image, "low_light")
    assert dark.mean() == pytest.approx(0.2 * image.mean().item(), rel=0.05)
    torch.testing.assert_close(dark * 255, (dark * 255).round())
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    spread = corrupt.corrupt(point, "blur")[0]
    places = torch.arange(41.0) - 20
    assert (spread.sum(0) * places**2).sum().item() == pytest.approx(4, rel=0.05)  # the variance of sigma 2
    errors = [(corrupt.jpeg(image, 0, quality=quality) - image).square().mean() for quality in (90, 20)]
    assert 0 < errors[0] < errors[1] < 0.001


def test_bad_arguments_are_named(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="unknown corruption 'blurr'; did you mean 'blur'"):
        corrupt.corrupt(image, "blurr")
    with pytest.raises(ValueError, match="1 or 3 channels"):
        corrupt.corrupt(image[:2], "jpeg")
    with pytest.raises(ValueError, match="G, H, W"):
        corrupt.corrupt(image[0], "clean")
    with pytest.raises(TypeError, match="floating-point"):
        corrupt.corrupt(image.byte(), "clean")
    with pytest.raises(ValueError, match="share"):
        corrupt.salt_and_pepper(image, 0, share=2)
