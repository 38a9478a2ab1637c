"""The two links that every promise is tested on."""

import pytest
from links import memory, mqtt


@pytest.fixture(params=["memory", "mosquitto"])
def link(request):
    with memory() if request.param == "memory" else mqtt(request.getfixturevalue("broker")) as link:
        yield link
