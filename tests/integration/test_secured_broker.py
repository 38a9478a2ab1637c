"""A real Mosquitto with the files of `emo broker` and `emo pki`: what is needed works, everything else is refused."""

import contextlib
import queue
import re
import time

import pytest
from secured import LINKS, Rogue

from emo.mqtt import tls

NODES = ("cloud", "edge-1", "edge-2", "device-01", "device-02", "device-03")
OBSERVER = "watch"
STRANGER = "device-99"  # has a certificate, and is in no fleet.yaml
IDS = (*NODES, OBSERVER, STRANGER)

# Who may write where, by hand from docs/protocol.md, at the WAN broker and at that of edge-1.
WRITES = {
    "wan": {
        "cloud": [
            "wan/status/cloud/0",
            "wan/status/cloud/1",
            "wan/global/0",
            "wan/global/1",
            "wan/state/0",
            "wan/state/1",
            "wan/head/0",
            "wan/report/cloud/0",
            "wan/report/cloud/1",
            "wan/event/cloud",
            "wan/history/0",
        ]
        + [f"wan/{kind}/{name}" for name in IDS for kind in ("refused", "unfit")],
        **{
            node: [
                f"wan/status/{node}/0",
                f"wan/report/{node}/0",
                *(f"wan/{kind}/{node}" for kind in ("event", "cannot-train")),
                f"wan/{'overlay' if node.startswith('edge') else 'update'}/{node}",
            ]
            for node in NODES[1:]
        },
        OBSERVER: [f"wan/status/{OBSERVER}/0"],
    },
    "lan": {
        "edge-1": [f"lan/edge-1/interval/{name}" for name in IDS],
        **{
            device: [f"lan/edge-1/activation/{device}", f"lan/edge-1/report/{device}"]
            for device in ("device-01", "device-02")
        },
    },
}
# And who reads what, of all that somebody may write.
READS = {
    "wan": {
        "cloud": r"wan/(status|update|overlay|cannot-train)/.*",
        **{edge: rf"wan/(state/.*|head/.*|unfit/{edge})" for edge in ("edge-1", "edge-2")},
        **{device: rf"wan/(global/.*|(refused|unfit)/{device})" for device in ("device-01", "device-02", "device-03")},
        OBSERVER: r"wan/(status|state|report|event|history)/.*",
    },
    "lan": {
        "edge-1": r"lan/edge-1/(activation|report)/.*",
        **{device: rf"lan/edge-1/interval/{device}" for device in ("device-01", "device-02")},
    },
}


def universe():
    """Every topic that there is or that somebody might think of."""
    yield from (
        "wan/global/0",
        "wan/global/1",
        "wan/state/0",
        "wan/state/1",
        "wan/head/0",
        "wan/history/0",
        "wan/global",
        "wan",
        "x",
        "wan/update",
    )
    for name in IDS:
        yield from (f"wan/status/{name}/0", f"wan/status/{name}/1", f"wan/status/{name}")
        yield from (f"wan/report/{name}/0", f"wan/report/{name}/1", f"wan/report/{name}")
        yield from (f"wan/{kind}/{name}" for kind in ("update", "refused", "overlay", "event", "cannot-train", "unfit"))
        for edge in ("edge-1", "edge-2"):
            yield from (f"lan/{edge}/{kind}/{name}" for kind in ("activation", "report", "interval"))


TOPICS = [f"emo/{topic}" for topic in universe()] + [
    "other/wan/global/0",
    "$SYS/broker/x",
    "$share/g/emo",
    "/emo",
]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", IDS)
def test_every_publish(client, link, name):
    mine = client(link, name)
    let_in = {topic for topic in TOPICS if mine.publish(topic) in {0, 0x10}}
    assert let_in == {f"emo/{topic}" for topic in WRITES[link].get(name, ())}
    assert mine.connected


FILTERS = ["#", "emo/#", "+/+/+/+", "+/+/+/+/+", "$SYS/#", "$share/g/emo/#", "emo/lan/+/activation/+"]


@pytest.mark.parametrize("link", LINKS)
def test_every_subscription(client, link):
    """Mosquitto 2.0 says yes to every SUBSCRIBE, and gives nothing that may not be read: so it is looked at what comes."""
    readers = {name: client(link, name) for name in IDS}
    for reader in readers.values():
        for name in FILTERS:
            reader.subscribe(name)
    for name, topics in WRITES[link].items():
        for topic in topics:
            assert readers[name].publish(f"emo/{topic}", b"secret", retain="wan/" in topic) in {0, 0x10}
    sent = {topic for topics in WRITES[link].values() for topic in topics}
    late = {name: client(link, name) for name in IDS}  # who take the sessions over, and get what is retained
    for reader in late.values():
        for name in FILTERS:
            reader.subscribe(name)
    may = {name: {f"emo/{topic}" for topic in sent if re.fullmatch(READS[link].get(name, "-"), topic)} for name in IDS}
    came = {name: set() for name in IDS}
    until = time.monotonic() + 10
    while came != may:
        assert time.monotonic() < until, {name: may[name] - came[name] for name in IDS}
        for name in IDS:
            came[name] |= drained(readers[name])
    time.sleep(0.3)  # for what should not come
    for name in IDS:
        assert came[name] | drained(readers[name]) == may[name], name
        assert drained(late[name]) <= may[name], name


def drained(reader):
    """The topics that have come so far."""
    topics = set()
    with contextlib.suppress(queue.Empty):
        while True:
            topics.add(reader.got.get_nowait()[0])
    return topics


def test_the_filters_that_the_tiers_use_bring_what_they_wait_for(client):
    cloud, edge, device = (client("wan", name) for name in ("cloud", "edge-1", "device-01"))
    for who, names in {
        cloud: ["wan/status/+/+", "wan/update/+", "wan/overlay/+"],
        edge: ["wan/state/+"],
        device: ["wan/global/+", "wan/refused/device-01"],
    }.items():
        assert all(who.subscribe(f"emo/{name}") == 1 for name in names)
    assert device.publish("emo/wan/update/device-01", b"u") == 0
    assert edge.publish("emo/wan/overlay/edge-1", b"o") == 0
    assert cloud.publish("emo/wan/refused/device-01", b"r") == 0
    assert {b"u", b"o"} <= payloads(cloud)
    assert b"r" in payloads(device)


def payloads(reader):
    found = set()
    with contextlib.suppress(queue.Empty):
        while True:
            found.add(reader.got.get(timeout=0.3)[1])
    return found


def test_a_claimed_id_is_worth_nothing(site, client):
    victim = client("wan", "device-02")
    spoof = Rogue(site.lines["wan"], tls.context(site.node("device-01")), "emo-device-02-wan", user="device-02")
    with spoof:
        assert spoof.publish("emo/wan/update/device-02") == 0x87
        assert spoof.publish("emo/wan/update/device-01") in {0, 0x10}
        other = Rogue(site.lines["wan"], tls.context(site.node("device-01")), "device-02", user="cloud")
        with other:
            assert other.publish("emo/wan/global/0") == 0x87
        assert victim.publish("emo/wan/update/device-02") in {0, 0x10}
        assert victim.connected


def test_a_will_on_anothers_topic_is_not_published(site, client):
    cloud, context = client("wan", "cloud"), tls.context(site.node("device-01"))
    cloud.subscribe("emo/wan/status/+/+")
    payloads(cloud)
    for topic in ("emo/wan/global/0", "emo/wan/status/device-02/0", "emo/wan/status/device-01/0"):
        Rogue(site.lines["wan"], context, "a", will=topic).vanish()
    assert cloud.got.get(timeout=5) == ("emo/wan/status/device-01/0", b"will")
    assert not payloads(cloud)
    newcomer = client("wan", "device-02")
    newcomer.subscribe("emo/wan/global/+")
    assert b"will" not in payloads(newcomer)


def test_where_a_node_can_leave_a_message(client):
    """On the WAN broker one in each of its topics, on a LAN broker nowhere."""
    for name, topics in WRITES["wan"].items():
        mine = client("wan", name)
        kept = [topic for topic in TOPICS if mine.publish(topic, b"left", retain=True) in {0, 0x10}]
        assert len(kept) == len(topics) == (len(topics) if name == "cloud" else 1 if name == OBSERVER else 5), name
    for name in ("edge-1", "device-01"):
        mine = client("lan", name)
        assert mine.publish(f"emo/{WRITES['lan'][name][0]}", b"left", retain=True) == -1
        assert not mine.connected


def test_an_observer_that_is_taken_out_sees_no_more(site, client):
    mine, device = client("wan", "watch-2"), client("wan", "device-01")
    assert mine.subscribe("emo/wan/report/+/+") == 1
    assert device.publish("emo/wan/report/device-01/0", b"before") == 0
    assert b"before" in payloads(mine)
    site.members("watch-2", there=False)
    try:
        until = time.monotonic() + 5
        while mine.publish("emo/wan/status/watch-2/0") != 0x87:
            assert time.monotonic() < until
        payloads(mine)
        assert device.publish("emo/wan/report/device-01/0", b"after") in {0, 0x10}
        assert b"after" not in payloads(mine)
        assert mine.connected
    finally:
        site.members("watch-2", there=True)
    site.revoke("watch-2")
    files = site.node("watch-2")
    until = time.monotonic() + 5
    while (again := Rogue(site.lines["wan"], tls.context(files), "again")).connected:
        again.close()
        assert time.monotonic() < until
    again.close()
    assert "was revoked" in tls.trouble(site.lines["wan"].broker.model_copy(update={"tls": files}))


def test_a_packet_over_the_limit_ends_the_connection(site, client):
    mine = client("wan", "device-01")
    assert mine.publish("emo/wan/update/device-01", bytes(257 << 10)) in {0, 0x10}
    assert mine.publish("emo/wan/update/device-01", bytes(300 << 10)) == -1
    assert not mine.connected
