"""A request's body comes whole and in bounds, or the client hears why; an answer goes out as it can read it."""

import asyncio
import gzip
import zlib

import pytest

from cloud_app import asgi
from cloud_app.asgi import Answer, Held, Incoming, reply
from cloud_app.request import Refused


def incoming(parts, held=None, disconnect=False, stalls=False, **headers):
    """A request whose body comes in `parts`, and then breaks off or stalls."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if disconnect:
        messages.append({"type": "http.disconnect"})
    elif messages and not stalls:
        messages[-1]["more_body"] = False

    async def receive():
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": pairs}
    return Incoming(scope, receive, held or Held())


def read(*args, **more):
    request = incoming(*args, **more)
    return asyncio.run(request.body())


@pytest.mark.parametrize("parts", [[b""], [b"whole"], [b"wh", b"o", b"", b"le"], [b"whole", b""]])
def test_a_body_in_one_part_or_many(parts):
    assert read(parts) == b"".join(parts)


def test_compressed_bodies():
    assert read([gzip.compress(b"whole")], content_encoding="gzip") == b"whole"
    assert read([zlib.compress(b"whole")], content_encoding="Deflate") == b"whole"
    assert read([b"whole"], content_encoding="identity") == b"whole"


@pytest.mark.parametrize(
    ("parts", "more", "status"),
    [
        ([b"ab", b"c"], {"disconnect": True}, 400),
        ([b"ab"], {"stalls": True}, 408),
        ([], {}, 408),
        ([b"a" * 60, b"b" * 41], {}, 413),
        ([b"a"], {"content_length": "101"}, 413),
        ([b"a"], {"content_length": "x"}, 400),
        ([gzip.compress(bytes(101))], {"content_encoding": "gzip"}, 413),
        ([gzip.compress(bytes(9))[:-4]], {"content_encoding": "gzip"}, 400),
        ([b"not gzip"], {"content_encoding": "gzip"}, 400),
        ([b""], {"content_encoding": "gzip"}, 400),
        ([b"a"], {"content_encoding": "gzip, gzip"}, 415),
    ],
)
def test_what_is_refused(monkeypatch, parts, more, status):
    monkeypatch.setattr(asgi, "MAX_BODY", 100)
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.05)
    with pytest.raises(Refused) as caught:
        read(parts, **more)
    assert caught.value.status == status


def test_all_bodies_together_are_bounded_and_given_back():
    async def main():
        held = Held(10)
        first, second, third = (incoming([part], held) for part in (b"123456", b"1234", b"1"))
        await first.body()
        await second.body()
        assert held.bytes == 10
        with pytest.raises(Refused, match="try again") as caught:
            await third.body()
        assert caught.value.status == 503
        for each in (third, first, second):
            each.release()
        assert held.bytes == 0
        await incoming([b"1234567890"], held).body()

    asyncio.run(main())


def test_what_a_compressed_body_became_counts_too():
    async def main():
        held = Held(1000)
        with pytest.raises(Refused, match="try again"):
            await incoming([gzip.compress(bytes(1001))], held, content_encoding="gzip").body()

    asyncio.run(main())


def sent(method, answer, **headers):
    messages = []

    async def send(message):
        messages.append(message)

    request = incoming([b""], **headers)
    request.method = method
    asyncio.run(reply(send, request, answer))
    start, body = messages
    return start["status"], dict(start["headers"]), body["body"]


def test_an_answer_has_its_length_and_what_was_set():
    status, headers, body = sent("GET", Answer(b"{}", 404, headers=[(b"retry-after", b"1")]))
    assert (status, body) == (404, b"{}")
    assert headers == {b"content-type": b"application/json", b"retry-after": b"1", b"content-length": b"2"}
    assert sent("HEAD", Answer(b"{}"))[1:] == (
        {b"content-type": b"application/json", b"content-length": b"2"},
        b"",
    )


def test_large_answers_are_compressed_where_that_is_read():
    text = b"a" * 5000
    _, headers, body = sent("GET", Answer(text), accept_encoding="br, gzip")
    assert gzip.decompress(body) == text
    assert headers[b"content-encoding"] == b"gzip"
    assert int(headers[b"content-length"]) == len(body)
    for accepted in ("", "br", "gzip;q=0", "gzip; q=0.0, br"):
        assert sent("GET", Answer(text), accept_encoding=accepted)[2] == text
    assert sent("GET", Answer(b"short"), accept_encoding="gzip")[2] == b"short"
