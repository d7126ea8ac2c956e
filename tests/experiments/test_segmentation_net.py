"""The small network: the same every time, and better than chance on what it was shown."""

import pytest
import torch

from experiments import _segmentation_net as segmentation


@pytest.fixture(scope="module")
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Green discs of class 1 on blue, with noise and a rim of void."""
    random = torch.Generator().manual_seed(0)
    y, x = torch.arange(96)[:, None], torch.arange(128)
    labels = ((y % 64 - 32) ** 2 + (x % 64 - 32) ** 2 < 22**2).long()
    image = 0.1 * torch.rand(3, 96, 128, generator=random)
    image[1] += 0.6 * labels
    image[2] += 0.6 * (1 - labels)
    labels[:4] = -1
    return image.clamp(0, 1), labels


def test_it_learns_and_repeats(scene) -> None:
    image, labels = scene
    state = torch.get_rng_state()
    nets = [segmentation.train([image], [labels], 2, seed=seed, steps=40) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (segmentation.predict(net, image) for net in nets)
    assert first.shape == (2, 6, 8)
    torch.testing.assert_close(first.sum(0), torch.ones(6, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    centres = labels[8::16, 8::16]
    right = (first.argmax(0) == centres).float().mean()
    chance = torch.stack([(centres == number).float().mean() for number in (0, 1)]).max()
    assert right > 0.9 > chance + 0.1


def test_bad_arguments_are_named(scene) -> None:
    image, labels = scene
    with pytest.raises(ValueError, match="of one size"):
        segmentation.train([image], [labels[:5]], 2, seed=0)
    with pytest.raises(ValueError, match="steps"):
        segmentation.train([image], [labels], 2, seed=0, steps=0)
