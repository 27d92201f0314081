"""What holds for all tests."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, and transformers may do that


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """These models are far too small for two threads to meet after every operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
