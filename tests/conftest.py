"""For all tests: hypothesis repeats itself, and PyTorch leaves the other cores to other tests."""

import os
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("evener.testing")  # what a contract finds is told as what a test finds

# No deadline: the cores are shared. The same examples each time: what fails here fails everywhere.
settings.register_profile(
    "evener", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, print_blob=True
)
settings.load_profile("evener")
torch.set_num_threads(1)

#: This user's own keys and meeting places, for this process of the suite and all that it starts.
_private = tempfile.TemporaryDirectory(prefix="evener-tests-")
os.environ["XDG_RUNTIME_DIR"] = _private.name
