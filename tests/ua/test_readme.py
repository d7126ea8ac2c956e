"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import torch

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_snippet() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    random = torch.Generator().manual_seed(0)
    depth = torch.rand(2, 1, 4, 6, generator=random)
    depth[:, :, 1, 2] = 0
    names = {
        "image": torch.rand(2, 3, 28, 42, generator=random),
        "signal": torch.rand(2, 5, 4, 6, generator=random),
        "features": torch.rand(2, 9, 4, 6, generator=random),
        "depth": depth,
        "probabilities": torch.rand(2, 3, 4, 6, generator=random).softmax(1),
        "tokens": torch.randn(2, 1 + 4 * 6, 8, generator=random),
        "h": 4,
        "w": 6,
    }
    exec(snippet, names)
    for name, channels in {"hr": 5, "hr_features": 9, "hr_depth": 1, "hr_probabilities": 3, "hr_tokens": 8}.items():
        assert names[name].shape == (2, channels, 28, 42) and names[name].isfinite().all(), name
    torch.testing.assert_close(names["hr_probabilities"].sum(1), torch.ones(2, 28, 42))


def test_files_that_it_names_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    named = re.findall(r"\]\(([\w./]+)(?:#[\w-]+)?\)", README) + re.findall(
        r"`((?:kernels|ua|experiments)/[\w./]+)`", README
    )
    assert named and all((root / path).exists() for path in named)


def test_headings_that_it_links_to_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    links = re.findall(r"\]\(([\w./]+)#([\w-]+)\)", README)
    assert links
    for path, anchor in links:
        headings = re.findall(r"^#+ (.*)$", (root / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor
