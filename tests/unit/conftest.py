"""Fixtures of several unit tests."""

import pytest
import torch

from edge_app.cache.disk import DiskCache
from emo.pki import authority


@pytest.fixture
def one_thread():
    """Same seed, same bits: that holds with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def disk(tmp_path):
    with DiskCache(tmp_path) as cache:
        yield cache


@pytest.fixture
def ca(tmp_path):
    authority.init(tmp_path / "ca", "EMO", 3650, None)
    return tmp_path / "ca"
