"""Prefilters: clean images untouched, corruptions found and removed, parts by name."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ua
from ua import corrupt, datasets, plugins
from ua.guides import lab
from ua.prefilters import _impulses, _noise, auto, denoise, median, none

NAMES = ["auto", "denoise", "median", "none"]


@pytest.fixture(scope="module")
def photographs() -> dict[str, Tensor]:
    """Every embedded image, (1, 3, H, W)."""
    return {sample.name: sample.image[None] for sample in datasets.load("embedded", size=(224, 224))}


@pytest.fixture(scope="module")
def face(photographs: dict[str, Tensor]) -> Tensor:
    return photographs["astronaut"][..., 48:176, 48:176].contiguous()


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


def grey(image: Tensor) -> Tensor:
    return image.mean(1, keepdim=True)


# --- clean images


@pytest.mark.parametrize("size", [(96, 96), (224, 224), (320, 448)], ids=str)
def test_auto_returns_clean_photographs_as_they_are(size: tuple[int, int]) -> None:
    for sample in datasets.load("embedded", size=size):
        for image in (
            sample.image[None],
            grey(sample.image[None]),
            grey(sample.image[None]).expand(1, 3, *size_of(sample.image)),
        ):
            assert auto.apply(image) is image, sample.name


def size_of(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def test_auto_returns_clean_dev_images_as_they_are(shared_data: Path) -> None:
    for sample in datasets.load("shared", root=str(shared_data), split="dev"):
        image = sample.image[None]
        assert auto.apply(image) is image, sample.name


@pytest.mark.parametrize("name", ["blur", "jpeg"])
def test_auto_leaves_blur_and_jpeg(name: str, photographs: dict[str, Tensor]) -> None:
    for label, image in photographs.items():
        corrupted = corrupt.corrupt(image[0], name)[None]
        assert auto.apply(corrupted) is corrupted, label


def test_lines_letters_and_saturated_patches_are_no_impulses() -> None:
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    pictures = {
        "thin lines": 0.5 + 0.5 * ((x % 12 == 0) & (y % 2 < 2)),
        "crossed lines": (((x % 9 == 0) | (y % 9 == 0)) * -0.6 + 0.6),
        "checks": ((x // 4 + y // 4) % 2).float(),
        "stripes": (x % 4 < 2).float(),
        "discs": ((x % 24 - 12) ** 2 + (y % 24 - 12) ** 2 < 60).float() * 0.6 + 0.4,
        "white": torch.ones(96, 96),
        "black": torch.zeros(96, 96),
    }
    for label, picture in pictures.items():
        image = picture.float().expand(1, 3, -1, -1)
        assert not _impulses.present(image), label
        assert auto.apply(image) is image, label


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (16, 16)], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_size_and_number_of_channels(name: str, size: tuple[int, int], channels: int) -> None:
    image = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0))
    out = plugins.find("ua.prefilters", name).apply(image)
    assert out.shape == image.shape and out.dtype == image.dtype
    assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1


# --- impulses


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_impulses_are_found_and_what_was_under_them_comes_back(share: float, photographs: dict[str, Tensor]) -> None:
    for name, image in photographs.items():
        corrupted = corrupt.salt_and_pepper(image[0], 1, share=share)[None]
        hit = (corrupted != image).any(1, keepdim=True).expand_as(image)
        assert _impulses.present(corrupted), name
        suspects, _ = _impulses.find(corrupted)
        visible = hit & ((corrupted - image).abs() > 0.4)
        assert (suspects & visible).sum() > 0.97 * visible.sum(), name
        assert (suspects & ~hit).sum() < 0.02 * image.numel(), name
        cleaned = auto.apply(corrupted)
        assert psnr(cleaned, image) > psnr(median.apply(corrupted), image) > psnr(corrupted, image) + 6, name
        untouched = ~_impulses.extreme(corrupted)
        assert torch.equal(cleaned[untouched], corrupted[untouched]), name


@pytest.mark.parametrize("channels", [1, 3])
def test_estimates_are_better_than_medians(channels: int, photographs: dict[str, Tensor]) -> None:
    gains = {}
    for name, image in photographs.items():
        image = grey(image) if channels == 1 else image
        corrupted = corrupt.salt_and_pepper(image[0], 1, share=0.2)[None]
        suspects, ends = _impulses.find(corrupted)
        cleaned, impulses = _impulses.filled(corrupted, suspects, ends)
        assert torch.equal(cleaned[~impulses], corrupted[~impulses]) and not (impulses & ~ends).any(), name
        visible = (corrupted - image).abs() > 0.1
        assert (impulses & visible).sum() > 0.98 * visible.sum(), name
        gains[name] = psnr(cleaned, image) - psnr(_impulses._by_medians(corrupted, suspects, ends), image)
    assert min(gains.values()) > 1 and sum(gains.values()) / len(gains) > 5, gains


def test_impulses_of_one_channel_and_in_saturated_patches() -> None:
    image = torch.full((1, 3, 64, 64), 0.6)
    image[..., :32, :] = 1.0
    corrupted = image.clone()
    hit = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.1
    corrupted[hit] = 0.0
    cleaned = auto.apply(corrupted)
    assert (cleaned - image).abs().max() < 1e-4 and (corrupted != image).float().mean() > 0.09


# --- noise


@pytest.mark.parametrize("sigma", [10, 20, 30])
def test_the_level_of_noise_is_estimated(sigma: int, photographs: dict[str, Tensor]) -> None:
    for name, image in photographs.items():
        noisy = corrupt.gaussian_noise(image[0], 1, sigma=sigma / 255)[None]
        assert float(_noise.level(noisy)) == pytest.approx(sigma / 255, rel=0.2), name
        assert float(_noise.level(image)) < auto.NOISY / 2, name


def test_noise_is_found_and_reduced(photographs: dict[str, Tensor]) -> None:
    gains = {}
    for name, image in photographs.items():
        noisy = corrupt.corrupt(image[0], "gaussian_20", 1)[None]
        cleaned = auto.apply(noisy)
        assert torch.equal(cleaned, _noise.remove(noisy, _noise.level(noisy))), name
        gains[name] = psnr(cleaned, image) - psnr(noisy, image)
        assert gains[name] > psnr(median.apply(noisy), image) - psnr(noisy, image), name
    assert min(gains.values()) > 3 and sum(gains.values()) / len(gains) > 7, gains


def test_little_of_the_noise_is_left_where_nothing_else_is() -> None:
    flat = torch.tensor([0.5, 0.4, 0.3])[:, None, None].expand(1, 3, 96, 101)
    noisy = corrupt.corrupt(flat[0], "gaussian_20", 1)[None]
    cleaned = auto.apply(noisy)
    assert float((cleaned - flat).std()) < 0.15 * 20 / 255
    assert float((cleaned - flat)[..., -3:, :].std()) < 0.25 * 20 / 255  # at the border, too
    # What a diffusion along small differences of colour would see.
    steps = lab.transform(cleaned).diff(dim=-1)
    assert float(steps.square().sum(1).mean().sqrt()) < 0.025


def test_grey_noise_is_found(face: Tensor) -> None:
    image = grey(face)
    noisy = corrupt.corrupt(image[0], "gaussian_20", 1)[None]
    cleaned = auto.apply(noisy)
    assert psnr(cleaned, image) > psnr(noisy, image) + 4
    three = auto.apply(noisy.expand(1, 3, -1, -1))
    assert torch.equal(three, cleaned.expand(1, 3, -1, -1))


def test_denoise_of_a_clean_image_changes_little(face: Tensor) -> None:
    assert psnr(denoise.apply(face), face) > 40
    flat = torch.full((1, 3, 32, 32), 0.3)
    torch.testing.assert_close(denoise.apply(flat), flat, rtol=0, atol=1e-5)


def test_cosines_are_orthonormal() -> None:
    for size in (1, 3, 8):
        matrix = _noise.cosines(size)
        torch.testing.assert_close(matrix @ matrix.mT, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


# --- weak light


def test_low_light_is_brightened_and_denoised(photographs: dict[str, Tensor]) -> None:
    for name, image in photographs.items():
        dark = corrupt.corrupt(image[0], "low_light", 1)[None]
        cleaned = auto.apply(dark)
        assert cleaned.amax(1).quantile(0.99) == pytest.approx(auto.WHITE, abs=0.1), name
        scale = float((cleaned * image).sum() / image.square().sum())
        assert 0.8 < scale < 2.5, name  # by how much it is brighter than the image was
        exposed = 5 * dark
        assert psnr(cleaned / scale, image) > psnr(exposed, image) + 2, name


def test_black_is_not_brightened() -> None:
    black = torch.full((1, 3, 32, 32), 1 / 255)
    assert auto.brightening(black) == 1.0 and auto.apply(black) is black


# --- batches, gradients, devices' arithmetic


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_mix(name: str, face: Tensor) -> None:
    images = torch.stack([corrupt.corrupt(face[0], kind, 1) for kind in ("clean", "gaussian_20", "salt_and_pepper_20")])
    apply = plugins.find("ua.prefilters", name).apply
    together = apply(images)
    for i in range(len(images)):
        torch.testing.assert_close(together[i : i + 1], apply(images[i : i + 1]), rtol=0, atol=1e-6)
    assert torch.equal(auto.apply(images)[0], images[0])


def test_what_is_no_suspect_would_be_left_as_it_is(photographs: dict[str, Tensor]) -> None:
    coloured = [one for one in photographs.values() if not torch.equal(one[:, 1:], one[:, :-1])]
    for kind in ("clean", "salt_and_pepper_10", "gaussian_20", "low_light", "jpeg"):
        images = torch.cat([corrupt.corrupt(picture[0], kind, 1)[None] for picture in coloured])
        images = torch.cat([images, images.mean(1, keepdim=True).expand(-1, 3, -1, -1)])
        suspects = auto._suspects(images)
        assert suspects == [auto._suspects(one)[0] for one in images.split(1)]
        cleaned = [auto._clean(one) for one in images.split(1)]
        assert all(suspect or new is None for suspect, new in zip(suspects, cleaned, strict=True))
        count = len(coloured)
        assert suspects[:count] == [kind not in ("clean", "blur", "jpeg")] * count and all(suspects[count:])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite(name: str, face: Tensor) -> None:
    for kind in ("gaussian_20", "salt_and_pepper_20", "low_light"):
        image = corrupt.corrupt(face[0, :, :48, :48], kind, 1)[None].requires_grad_()
        plugins.find("ua.prefilters", name).apply(image).square().sum().backward()
        assert image.grad is not None and image.grad.isfinite().all() and image.grad.abs().max() > 0


def test_median_of_nine() -> None:
    image = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    out = median.apply(image)
    assert out[0, 1, 2, 3] == image[0, 1, 1:4, 2:5].median()
    corner = image[0, 0, [0, 0, 1]][:, [0, 0, 1]]
    assert out[0, 0, 0, 0] == corner.median()
    assert none.apply(image) is image


# --- through the library


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", ["auto", "median", "denoise"])
def test_fit_and_render_see_the_filtered_image(name: str, steps: int, face: Tensor) -> None:
    image = corrupt.corrupt(face[0], "salt_and_pepper_20", 1)[None]
    signal = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"preset": "default", "steps": steps}
    found = ua.fit(image, (8, 8), prefilter=name, **options)
    filtered = plugins.find("ua.prefilters", name).apply(image)
    expected = ua.fit(filtered, (8, 8), prefilter="none", **options)
    assert torch.equal(found.losses, expected.losses) and torch.equal(found.image, image)
    assert torch.equal(found.render(signal), expected.render(signal))
    assert not torch.equal(found.render(signal), ua.fit(image, (8, 8), prefilter="none", **options).render(signal))
    torch.testing.assert_close(
        ua.upsample(image, signal, prefilter=name, **options), found.render(signal), rtol=0, atol=0
    )


def test_names() -> None:
    assert list(plugins.names("ua.prefilters")) == NAMES
    with pytest.raises(ValueError, match="unknown prefilter 'autto'; did you mean 'auto'"):
        ua.FitConfig(prefilter="autto")
    with pytest.raises(ValueError, match=r"prefilter: module 'json.decoder' has no 'apply'"):
        ua.FitConfig(prefilter="json.decoder")
    with pytest.raises(TypeError, match="prefilter: a name is needed, got None"):
        ua.FitConfig(prefilter=None)


def test_ones_own_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_prefilters").mkdir()
    (tmp_path / "own_prefilters" / "inverse.py").write_text("def apply(image):\n    return 1 - image\n")
    monkeypatch.syspath_prepend(tmp_path)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    signal = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    found = ua.fit(image, (4, 4), prefilter="own_prefilters.inverse")
    torch.testing.assert_close(found.render(signal), ua.upsample(1 - image, signal, prefilter="none"), rtol=0, atol=0)
    found.save(tmp_path / "fit.safetensors")
    assert ua.Fit.load(tmp_path / "fit.safetensors").config.prefilter == "own_prefilters.inverse"
    monkeypatch.delitem(__import__("sys").modules, "own_prefilters.inverse")
    with pytest.raises(ValueError, match="needs the module 'own_prefilters.inverse': import that first"):
        ua.Fit.load(tmp_path / "fit.safetensors")
