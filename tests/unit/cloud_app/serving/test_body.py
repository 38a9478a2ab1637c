"""A request's body comes whole and in bounds, or the client hears why; an answer goes out as it can read it."""

import asyncio
import gzip
import zlib

import pytest

from cloud_app.serving.fair_share import FairShare
from cloud_app.serving.http import body as asgi
from cloud_app.serving.http.body import Answer, Incoming, packed, reply
from cloud_app.serving.infer_request import Refused

MOST = 1000


def incoming(parts, held=None, disconnect=False, stalls=False, client="", **headers):
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
    scope = {"type": "http", "method": "POST", "path": "/", "headers": pairs, "client": (client, 1)}
    return Incoming(scope, receive, held or FairShare(MOST))


def read(*args, most=MOST, **more):
    async def main():
        return await incoming(*args, **more).body(most)

    return asyncio.run(main())


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
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.05)
    with pytest.raises(Refused) as caught:
        read(parts, most=100, **more)
    assert caught.value.status == status


def test_all_bodies_together_are_bounded_and_who_holds_most_gives_way(monkeypatch):
    monkeypatch.setattr(asgi, "_LITTLE", 1)

    async def main():
        held = FairShare(10)

        async def one(parts, client, **more):
            request = incoming(parts, held, client=client, **more)
            try:
                return await request.body(100)
            except asyncio.CancelledError:
                assert request.evicted
                return "shown out"

        greedy = [asyncio.ensure_future(one([b"123", b""], "10.0.0.1", stalls=True)) for _ in range(3)]
        await asyncio.sleep(0)
        assert held.taken == 9
        assert await one([b"1234"], "10.0.0.2") == b"1234"
        await asyncio.sleep(0.01)
        assert [each.done() for each in greedy] == [False, False, True]
        assert await greedy[2] == "shown out"
        with pytest.raises(Refused, match="try again") as caught:
            await one([b"1234567"], "10.0.0.2")  # which would now hold most itself
        assert caught.value.status == 503
        for each in greedy:
            each.cancel()

    asyncio.run(main())


def test_a_request_gives_back_what_it_held():
    async def main():
        held = FairShare(10_000)
        first = incoming([bytes(6000)], held)
        await first.body(9000)
        assert held.taken == 6000
        first.release()
        first.release()
        assert held.taken == 0
        await incoming([bytes(9000)], held).body(9000)

    asyncio.run(main())


def test_little_is_counted_where_it_adds_up():
    async def main():
        held = FairShare(10_000)
        request = incoming([bytes(100)] * 90, held)
        await request.body(9000)
        assert held.taken == 41 * 100 * 2

    asyncio.run(main())


def test_what_a_compressed_body_became_counts_too():
    with pytest.raises(Refused, match="try again"):
        read([gzip.compress(bytes(9001))], FairShare(9000), most=10_000, content_encoding="gzip")


def sent(method, answer, **headers):
    messages = []

    async def send(message):
        messages.append(message)

    async def main():
        request = incoming([b""], FairShare(10_000), **headers)
        request.method = method
        await reply(send, request, await packed(request, answer))

    asyncio.run(main())
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
