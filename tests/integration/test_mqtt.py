"""What only MQTT has: brokers that are away, restart, know no MQTT 5, or lose the thread."""

import logging
import threading
import time

import pytest
from brokers import Mosquitto, Proxy, free_port
from links import frames_of, mqtt, update
from paho.mqtt.enums import MQTTProtocolVersion

from emo.config import Broker
from emo.errors import BrokerError
from emo.wire import receiver
from emo.wire.messages import GlobalModel, Interval, Status, Update
from emo.wire.topics import subscription

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def proxy(broker):
    proxy = Proxy(broker)
    yield proxy
    proxy.close()


def test_a_message_published_before_the_broker_exists_arrives(mosquitto, caplog):
    with mqtt(mosquitto.broker) as link, caplog.at_level(logging.WARNING, "emo"):
        here, there = link.end("here", []), link.end("there", [subscription(link.root, Update)])
        for end in (here, there):
            end.channel.start(end)
        assert here.channel.publish(GlobalModel("r", 1, (), {"epochs": 1}, {}))
        with pytest.raises(BrokerError, match=f"127.0.0.1:{mosquitto.broker.port}"):
            here.channel.wait_connected(0.2)
        mosquitto.start()
        there.channel.wait_connected(10)
        here.counted("sent.GlobalModel", 1)
        assert here.channel.publish(update())
        late = link.end("late", [subscription(link.root, GlobalModel)]).start()
        assert late.wait(1)[0].round == 1
        there.wait(1)
    said = [record.message for record in caplog.records if "does not answer" in record.message]
    assert len(said) == 2  # one line an end, whatever the number of attempts


def test_messages_published_while_the_broker_restarts_arrive(mosquitto_program, tmp_path):
    # Persistence on: a broker that forgets its sessions forgets who subscribed.
    server = Mosquitto(mosquitto_program, tmp_path, f"persistence true\npersistence_location {tmp_path}/")
    server.start()
    try:
        with mqtt(server.broker) as link:
            there = link.end("there", [subscription(link.root, Update), subscription(link.root, GlobalModel)]).start()
            here = link.end("here", []).start()
            here.channel.publish(update("dev-0"))
            there.wait(1)
            server.stop()
            here.counted("mqtt.disconnected", 1)
            for n in range(1, 6):
                assert here.channel.publish(update(f"dev-{n}", size=3000))
            server.start()
            got = there.wait(6)
            assert {message.device for message in got} == {f"dev-{n}" for n in range(6)}
    finally:
        server.stop()


def test_a_message_is_received_only_when_its_handler_has_returned(broker):
    with mqtt(broker) as link:
        first, here = link.end("there", [subscription(link.root, Update)]), link.end("here", []).start()
        held, over = threading.Event(), threading.Event()
        first.on_message = lambda _message: held.set() or over.wait(10)
        first.start()
        here.channel.publish(update(size=5000))  # 5 packets
        assert held.wait(10)
        link.vanish(first)
        again = link.end("there", [subscription(link.root, Update)]).start()
        over.set()
        assert again.wait(1)[0].device == "dev-1"


def test_a_message_is_received_only_when_it_is_settled(broker):
    settling, forever = threading.Event(), threading.Event()

    def settle():
        settling.set()
        forever.wait(20)

    with mqtt(broker) as link:
        filters = [subscription(link.root, Update)]
        first = link.end("cloud", filters).start(settle=settle)
        link.end("dev-1", []).start().channel.publish(update())
        assert settling.wait(10)
        link.vanish(first)  # handled, not settled
        link.end("cloud", filters).start().wait(1)
        forever.set()


def test_while_one_is_settled_the_next_is_handled(broker):
    settling, over = threading.Event(), threading.Event()

    def settle():
        settling.set()
        over.wait(20)

    with mqtt(broker) as link:
        there = link.end("cloud", [subscription(link.root, Update)]).start(settle=settle)
        here = link.end("dev-1", []).start()
        here.channel.publish(update(size=1))
        assert settling.wait(10)
        here.channel.publish(update(size=2))
        assert [each.weights["w"].size for each in there.wait(2)] == [1, 2]
        over.set()


def test_a_large_message_outlives_a_cut_connection(proxy):
    with mqtt(proxy.broker) as link:
        there, here = (
            link.end("there", [subscription(link.root, Update)]).start(),
            link.end("here", []).start(),
        )
        sent = update(size=100_000)  # 100 packets
        for _ in range(3):
            here.channel.publish(sent)
            here.counted("sent_bytes.Update", 1)
            time.sleep(0.02)
            proxy.cut()
        got = there.wait(1, timeout=15)
        assert (got[-1].weights["w"] == sent.weights["w"]).all()
        here.counted("mqtt.disconnected", 1)


# -- 3.1.1


@pytest.mark.parametrize("polite", [True, False], ids=["refused", "hung up on"])
def test_a_broker_that_knows_no_mqtt_5_is_spoken_to_in_3_1_1(proxy, polite):
    proxy.hangs_up, proxy.polite = (lambda level: level == 5), polite
    with mqtt(proxy.broker) as link:
        there, here = (
            link.end("there", [subscription(link.root, Update)]).start(),
            link.end("here", []).start(),
        )
        here.channel.publish(update(size=20_000))
        there.wait(1)
        assert here.channel._protocol == there.channel._protocol == MQTTProtocolVersion.MQTTv311


def test_a_broker_that_keeps_one_packet_on_its_way_delivers_all(mosquitto_program, tmp_path, monkeypatch):
    # Mosquitto heeds its max_inflight_messages for 3.1.1 only; ejabberd keeps one for both, RabbitMQ ten.
    monkeypatch.setattr(receiver, "_STALL_S", 0.2)
    server = Mosquitto(mosquitto_program, tmp_path, "max_inflight_messages 1")
    server.start()
    proxy = Proxy(server.broker)
    proxy.hangs_up, proxy.polite = (lambda level: level == 5), True
    try:
        with mqtt(proxy.broker) as link:
            here = link.end("here", []).start()
            here.channel.publish(GlobalModel("r", 1, (), {"epochs": 1}, update(size=20_000).weights))
            here.counted("sent.GlobalModel", 1)
            filters = [subscription(link.root, kind) for kind in (Update, GlobalModel)]
            there = link.end("there", filters).start()  # what is retained, too
            there.wait(1)
            for number in range(3):
                here.channel.publish(update(f"dev-{number}", size=20_000))
            there.wait(4)
    finally:
        proxy.close()
        server.stop()


def test_hang_ups_with_packets_in_flight_wedge_nothing(proxy):
    # A broker behind a load balancer that restarts: TCP is accepted, then closed, three times.
    with mqtt(proxy.broker) as link:
        there, here = (
            link.end("there", [subscription(link.root, Update)]).start(),
            link.end("here", []).start(),
        )
        proxy.deaf = True  # no PUBACK comes back
        for n in range(4):
            here.channel.publish(update(f"dev-{n}"))
        here.counted("sent.Update", 4)
        proxy.hangs_up = lambda _level: True
        proxy.cut()
        until = time.monotonic() + 10
        while here.channel._protocol == MQTTProtocolVersion.MQTTv5:
            assert time.monotonic() < until
            time.sleep(0.01)
        proxy.hangs_up, proxy.deaf = (lambda _level: False), False
        here.channel.wait_connected(10)
        there.channel.wait_connected(10)
        here.channel.publish(update("after"))
        here.counted("sent.Update", 5, timeout=2)


def test_a_broker_that_was_only_away_is_spoken_to_in_mqtt_5_again(proxy):
    # Hang-ups do not tell a 3.1.1 broker from one that is starting: after the next cut MQTT 5 has its turn.
    proxy.hangs_up = lambda _level: True
    with mqtt(proxy.broker) as link:
        here = link.end("here", [])
        here.channel.start(here)
        until = time.monotonic() + 10
        while proxy.refused < 4 and here.channel._protocol == MQTTProtocolVersion.MQTTv5:
            assert time.monotonic() < until
            time.sleep(0.01)
        proxy.hangs_up = lambda _level: False
        here.channel.wait_connected(10)
        proxy.cut()
        while not (here.channel._connected.is_set() and here.channel._protocol == MQTTProtocolVersion.MQTTv5):
            assert time.monotonic() < until + 10
            time.sleep(0.01)


def test_one_who_toggles_its_status_costs_little_and_its_last_word_holds(broker):
    with mqtt(broker) as link:
        there = link.end("there", [subscription(link.root, kind) for kind in (Status, Update)]).start()
        evil, honest = link.end("evil", []).start(), link.end("honest", []).start()
        for number in range(300):
            for data in frames_of(Status("evil", "device", number % 2 == 1)):
                evil.channel._client.publish(f"{link.root}/wan/status/evil/0", data, qos=0)
        there.counted("status.held", 250)
        honest.channel.publish(Status("honest", "device", online=True))
        honest.channel.publish(update())
        got = there.wait(23)
        words = [message.online for message in got if getattr(message, "node", "") == "evil"]
        assert len(words) == 21  # twenty at once; then, when it has its turn, the newest
        assert words[-1]
        assert sum(getattr(message, "node", "") == "honest" for message in got) == 1


# -- ends


def test_two_nodes_of_one_name_are_told(broker, caplog):
    with mqtt(broker) as link:
        link.end("twin", []).start()
        other = link.end("twin", [])
        other.channel.start(other)
        until = time.monotonic() + 2
        while "give each node an id of its own" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_slow_handler_costs_no_connection(broker):
    quick = broker.model_copy(update={"keepalive_s": 5, "queue_messages": 200})
    with mqtt(quick) as link:
        filters = [subscription(link.root, Interval)]
        there, here = link.end("there", filters).start(), link.end("here", []).start()
        there.on_message = lambda message: time.sleep(0.02)
        for batch in range(100):
            here.channel.publish(Interval("r", "e", "d", batch, 0, 1.0))
        assert [message.batch for message in there.wait(100, timeout=4)] == list(range(100))
        assert there.journal.counts["inbox.full"] == 0
        assert there.journal.counts["mqtt.disconnected"] == 0


def test_stop_waits_for_a_connection_that_is_being_made(proxy):
    proxy.delay_s = 0.3
    with mqtt(proxy.broker) as link:
        here = link.end("here", [])
        here.channel.publish(update())
        here.channel.start(here)
        here.channel.stop()
        assert here.journal.counts["sent.Update"] == 1


def test_stop_without_a_broker_is_quick_and_leaves_no_thread():
    before = set(threading.enumerate())
    with mqtt(Broker(port=free_port())) as link:
        here = link.end("here", [])
        here.channel.publish(update())
        here.channel.start(here)
        began = time.monotonic()
        here.channel.stop()
        assert time.monotonic() - began < 2
    assert set(threading.enumerate()) <= before
