"""How the tests are run: many of them wait for devices, so there are more of them at a time than cores."""

import os
import sys

import pytest
from hypothesis import settings

from tests import marks

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: there are others, and threads that wait spin


def pytest_xdist_auto_num_workers(config):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 * cores


settings.register_profile("fedq", deadline=None)  # a busy machine is no failure
settings.load_profile("fedq")


def pytest_collection_modifyitems(items):
    marks.put_off(items)


@pytest.fixture(autouse=True)
def torch_is_given_back():
    """No test leaves a hook's words on torch.Tensor: the next one in its process would fail of them."""
    yield
    if torch := sys.modules.get("torch"):
        assert not hasattr(torch.Tensor, "private_tensor"), "a TorchHook was not given back"
