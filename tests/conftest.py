"""What all tests share: real samples with ground truth, where they are at hand."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real samples: UA_DATA, else ../shared/data beside the checkout; skips without."""
    folder = Path(os.environ.get("UA_DATA", CHECKOUT.parent / "shared" / "data"))
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"real samples are not at hand (UA_DATA or {folder})")
    return folder
