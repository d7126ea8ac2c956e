"""Our packages import quickly, need little, and get along with libraries that look for a module `kernels`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
import ua

CHECKOUT = Path(__file__).resolve().parents[2]
# Beyond PyTorch's own import. Numba and llvmlite are imported when the cpu backend first computes.
NOT_NEEDED = [
    "hydra",
    "omegaconf",
    "wandb",
    "matplotlib",
    "numba",
    "llvmlite",
    "skimage",
    "scipy",
    "PIL",
    "transformers",
    "triton",
]


def python(script: str, folder: Path) -> str:
    """What a fresh process prints that runs `script` in `folder`."""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_imports_take_little_time_beyond_pytorch(tmp_path: Path) -> None:
    # PyTorch first, then the kernels, then the rest. The best of three processes, as machines are busy.
    script = (
        "import time, torch; a = time.perf_counter();"
        "import kernels.bilateral.cpu, kernels.bilateral.reference, kernels.bilateral.torch; b = time.perf_counter();"
        "import ua; c = time.perf_counter(); print(b - a, c - a)"
    )
    times = [[float(seconds) for seconds in python(script, tmp_path).split()] for _ in range(3)]
    kernels_alone, everything = (min(column) for column in zip(*times, strict=True))
    assert kernels_alone < 0.5
    assert everything < 1.5


BACKENDS = "kernels.bilateral.cpu, kernels.bilateral.torch, kernels.bilateral.reference"


@pytest.mark.parametrize(
    ("modules", "at_root"),
    [("ua", True), ("ua", False), ("kernels", False), (BACKENDS, False)],
    ids=["ua-from-the-root", "ua-from-elsewhere", "kernels", "backends"],
)
def test_imports_need_nothing_heavy(modules: str, at_root: bool, tmp_path: Path) -> None:
    # PyTorch itself may bring some of them: only what we add counts.
    script = f"import sys, torch; before = set(sys.modules); import {modules}; print(*set(sys.modules) - before)"
    added = {name.partition(".")[0] for name in python(script, CHECKOUT if at_root else tmp_path).split()}
    assert modules.partition(".")[0] in added
    assert not added & set(NOT_NEEDED)


def test_upsampling_with_pytorch_alone_needs_no_numba(tmp_path: Path) -> None:
    script = (
        "import sys, torch, ua; ua.upsample(torch.rand(3, 8, 8), torch.rand(2, 2, 2), backend='torch');"
        f"print(*[name for name in {NOT_NEEDED} if name in sys.modules])"
    )
    without_ours = (
        "import sys, torch; torch.nn.functional.interpolate(torch.rand(1, 1, 2, 2), (4, 4));" + script.split(";")[-1]
    )
    assert python(script, tmp_path).split() == python(without_ours, tmp_path).split()


def test_the_module_kernels_has_a_version() -> None:
    # Hugging Face libraries read it where they find a module of this name.
    assert all(part.isdigit() for part in kernels.__version__.split("."))


def test_public_names() -> None:
    expected = {"upsample", "fit", "render", "Fit", "Gaussians", "FitConfig", "preset", "UpsampleAnything"}
    assert expected <= set(ua.__all__) and all(hasattr(ua, name) for name in ua.__all__)


DINO = """
import torch
import transformers
from transformers import Dinov2Config, Dinov2Model
import kernels, ua
assert kernels.__file__.startswith(CHECKOUT), kernels.__file__

config = Dinov2Config(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=56, patch_size=14
)
torch.manual_seed(0)
model = Dinov2Model(config).eval()
image = torch.rand(1, 3, 56, 84)
with torch.no_grad():
    tokens = model(image).last_hidden_state[:, 1:]  # without the class token
features = tokens.transpose(1, 2).reshape(1, 24, 4, 6)
hr = ua.upsample(image, features, backend="torch")
assert hr.shape == (1, 24, 56, 84) and hr.isfinite().all()
print("upsampled")
"""


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_a_transformers_backbone_runs_beside_our_kernels() -> None:
    # From the repository root, where `import kernels` finds ours whatever is installed.
    assert python(f"CHECKOUT = {str(CHECKOUT)!r}\n{DINO}", CHECKOUT).splitlines()[-1] == "upsampled"
