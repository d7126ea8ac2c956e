"""The descriptor bank: equivariances, closed forms, SciPy, and its constants."""

import pytest
import torch

from ua.datasets import embedded
from ua.features import CHANNELS, GROUPS, ORIENTATIONS, _raw, descriptor_bank
from ua.filters import blur


def channels(name: str) -> slice:
    start = 0
    for group, count, _, _ in GROUPS:
        if group == name:
            return slice(start, start + count)
        start += count
    raise KeyError(name)


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return embedded.load(["chelsea"], size=(64, 80))[0].image[None].double()


def test_shape_dtype_and_determinism(photo: torch.Tensor) -> None:
    bank = descriptor_bank(photo.float())
    assert bank.shape == (1, 32, 64, 80) and CHANNELS == 32
    assert bank.dtype == torch.float32
    assert torch.equal(bank, descriptor_bank(photo.float()))
    torch.testing.assert_close(bank.double(), descriptor_bank(photo), atol=0.02, rtol=0)


def test_items_of_a_batch_never_mix(photo: torch.Tensor) -> None:
    other = photo.flip(-1)
    both = descriptor_bank(torch.cat([photo, other]))
    torch.testing.assert_close(both[:1], descriptor_bank(photo))
    torch.testing.assert_close(both[1:], descriptor_bank(other))


def test_every_channel_says_something(photo: torch.Tensor) -> None:
    assert (descriptor_bank(photo).std((0, 2, 3)) > 0.05).all()


def test_blur_agrees_with_scipy(photo: torch.Tensor) -> None:
    from scipy.ndimage import gaussian_filter

    expected = gaussian_filter(photo[0, 0].numpy(), 3.0, mode="nearest", truncate=4.0)
    torch.testing.assert_close(blur(photo, 3.0)[0, 0], torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_derivatives_are_exact_on_polynomials() -> None:
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(70.0), indexing="ij")
    surface = (3 * x + 0.5 * x * x - 2 * y)[None, None].double()
    inside = (..., slice(25, 35), slice(25, 45))
    torch.testing.assert_close(blur(surface, 3.0, order_x=1)[inside][0, 0], (3 + x.double())[25:35, 25:45])
    torch.testing.assert_close(blur(surface, 3.0, order_x=2)[inside], torch.ones(1, 1, 10, 20).double())
    torch.testing.assert_close(blur(surface, 3.0, order_y=1)[inside], torch.full((1, 1, 10, 20), -2.0).double())


def test_a_flat_image_has_its_colour_and_nothing_else() -> None:
    image = torch.tensor([0.2, 0.6, 0.4]).double()[None, :, None, None].expand(1, 3, 20, 24)
    raw = _raw(image)
    expected = torch.tensor([0.299 * 0.2 + 0.587 * 0.6 + 0.114 * 0.4, -0.4, 0.0]).double()
    for scale in (1, 3):
        torch.testing.assert_close(raw[0, channels(f"lightness_{scale}"), 7, 9], expected[:1], atol=1e-7, rtol=0)
        torch.testing.assert_close(raw[0, channels(f"opponent_{scale}"), 7, 9], expected[1:], atol=1e-7, rtol=0)
    colour = [channels(f"{kind}_{scale}") for kind in ("lightness", "opponent") for scale in (1, 3)]
    rest = torch.ones(32, dtype=torch.bool)
    for part in colour:
        rest[part] = False
    assert raw[:, rest].abs().max() < 1e-6


@pytest.mark.parametrize(("angle", "bin_"), [(0.0, 0), (45.0, 2), (90.0, 4), (135.0, 6), (180.0, 0)])
def test_a_grating_votes_for_its_orientation(angle: float, bin_: int) -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    turn = torch.deg2rad(torch.tensor(angle))
    wave = 0.5 + 0.4 * torch.sin(0.5 * (x * turn.cos() + y * turn.sin()))
    histogram = _raw(wave.expand(1, 3, 48, 48).double())[0, channels("orientation_3"), 24, 24]
    assert histogram.argmax() == bin_
    assert histogram[bin_] > 0.95 * histogram.sum()


def test_a_vote_is_shared_linearly_between_two_bins() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    turn = torch.deg2rad(torch.tensor(22.5 * 2.25))  # a quarter of the way from bin 2 to bin 3
    ramp = 0.01 * (x * turn.cos() + y * turn.sin()) + 0.1
    histogram = _raw(ramp.expand(1, 3, 40, 40).double())[0, channels("orientation_1"), 20, 20]
    expected = torch.zeros(8).double()
    expected[2], expected[3] = 0.75 * 0.1, 0.25 * 0.1  # the root of the slope .01, shared
    torch.testing.assert_close(histogram, expected, atol=1e-6, rtol=0)


def test_a_quarter_turn_of_the_image_turns_the_descriptors(photo: torch.Tensor) -> None:
    turned = _raw(photo.rot90(1, (-2, -1))).rot90(-1, (-2, -1))
    raw = _raw(photo)
    for scale in (1, 3):
        part = channels(f"orientation_{scale}")
        torch.testing.assert_close(turned[:, part], raw[:, part].roll(ORIENTATIONS // 2, 1))
        for kind in ("lightness", "opponent", "contrast", "opponent_contrast", "laplacian"):
            part = channels(f"{kind}_{scale}")
            torch.testing.assert_close(turned[:, part], raw[:, part])


def test_the_bank_is_local_and_moves_with_the_image(photo: torch.Tensor) -> None:
    changed = photo.clone()
    changed[..., :5, :5] = 1 - changed[..., :5, :5]
    difference = (descriptor_bank(changed) - descriptor_bank(photo)).abs().amax((0, 1))
    assert difference[40:, 40:].max() == 0
    whole, part = descriptor_bank(photo), descriptor_bank(photo[..., 8:, 8:])
    torch.testing.assert_close(whole[..., 32:-20, 32:-20], part[..., 24:-20, 24:-20])


def test_the_constants_standardise_the_embedded_photographs() -> None:
    names = [*embedded.PHOTOGRAPHS, "motorcycle"]
    banks = [descriptor_bank(sample.image[None])[0].flatten(1) for sample in embedded.load(names)]
    values = torch.cat(banks, dim=1)
    for group, _, _, _ in GROUPS:
        part = values[channels(group)]
        assert part.mean().item() == pytest.approx(0, abs=0.02), group
        assert part.std().item() == pytest.approx(1, abs=0.02), group


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2)])
def test_tiny_images_work(size: tuple[int, int]) -> None:
    assert descriptor_bank(torch.rand(2, 3, *size)).isfinite().all()


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "image"),
        (torch.zeros(3, 4, 4), ValueError, r"\(B, 3, H, W\)"),
        (torch.zeros(1, 1, 4, 4), ValueError, r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 0, 4), ValueError, "empty"),
        (torch.full((1, 3, 4, 4), 1.5), ValueError, r"\[0, 1\]"),
        (torch.full((1, 3, 4, 4), float("nan")), ValueError, r"\[0, 1\]"),
    ],
)
def test_bad_images_are_refused(image: torch.Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        descriptor_bank(image)
