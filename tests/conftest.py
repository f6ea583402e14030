"""What every test runs under: no network but loopback, no window, one thread."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "no_network"))

import closed_network  # noqa: E402

closed_network.close()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the checkout."""
    return ROOT
