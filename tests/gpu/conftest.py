"""Tests here that ask for the fixture `gpu` are skipped where there is none."""

import pytest
import torch


@pytest.fixture
def gpu():
    """The CUDA device; skips, saying why, where a test cannot run."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine")
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        pytest.skip(f"needs compute capability 8.0 (bf16), this GPU has {capability}")
    return torch.device("cuda")
