"""The clients of bench.serve count what they get."""

import json

import pytest
from serving import request

from bench.load import ask


@pytest.mark.parametrize(("body", "errors"), [(json.dumps(request()).encode(), 0), (b"{", 50)])
@pytest.mark.parametrize("clients", [1, 7, 64])
def test_each_answer_is_counted_once(url, body, errors, clients):
    found = ask(f"{url}/v2/models/tiny/infer", body, [], clients, 50)
    assert (found["requests"], found["errors"]) == (50, errors)
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["max_ms"]


def test_an_endpoint_that_breaks_off_is_said(url):
    with pytest.raises(ConnectionError, match=r"broke off|reset by peer"):
        ask(f"{url}/v2/models/tiny/infer", b"", ["Connection: close"], 1, 2)
