"""For all tests: hypothesis repeats itself, and PyTorch leaves the other cores to other tests."""

import torch
from hypothesis import HealthCheck, settings

# No deadline: the cores are shared. The same examples each time: what fails here fails everywhere.
settings.register_profile(
    "evener", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, print_blob=True
)
settings.load_profile("evener")
torch.set_num_threads(1)
