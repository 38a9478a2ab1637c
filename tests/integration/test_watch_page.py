"""The page of `emo watch` in a real browser: an observer of its own process, a real broker, and a fleet that is played."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from brokers import Proxy
from chromium import PROGRAM, Chromium
from links import frames_of, mqtt

from emo.wire.messages import Event, Report, RunHistory, RunState, Status
from emo.wire.topics import topic

PAGE = Path(__file__).parents[2] / "cloud_app" / "watch" / "page"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
RUN, ROUNDS = "run-1", 5
EDGES = {"edge-1": ("device-00", "device-01"), "edge-2": ("device-02", "device-03")}
DEVICES = {device: edge for edge, members in EDGES.items() for device in members}

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium on PATH (apt install chromium)")


class Fleet:
    """Nodes that say what a run's would, and do nothing."""

    def __init__(self, link):
        self.link, self.ends, self.numbers = link, {}, {}
        tiers = {"cloud": "cloud", **dict.fromkeys(EDGES, "edge"), **dict.fromkeys(DEVICES, "device")}
        for node, tier in tiers.items():
            self.start(node, tier)
        self.ends["cloud"].channel.publish(RunState(RUN, 3, ROUNDS, "training"))
        self.rounds(2, {})
        for edge in EDGES:
            figures = {"cache.entries": 7, "cache.bytes": 7000, "overlay.step": 40, "overlay.loss": 1.25, EVIL[:25]: 3}
            self.say(Report(edge, "edge", RUN, time.time(), doing="round 3 of 5", figures=figures))
        for device, edge in DEVICES.items():
            sent = {"sent_bytes.Update": 5_000_000, "tap.offered": 100, "tap.sent": 25, "train.loss": 0.5}
            self.say(Report(device, "device", RUN, time.time(), edge, "waits", figures=sent, intervals="0.3z"))
        self.event("cloud", "cloud", "opened", run=RUN, round=3, devices=list(DEVICES))
        self.event("cloud", "cloud", "counted", run=RUN, round=3, device="device-00", samples=10)

    def start(self, node, tier):
        self.ends[node] = self.link.end(node, [], Status(node, tier, online=False))
        self.ends[node].start(lambda: Status(node, tier, online=True))

    def say(self, message):
        for index, each in enumerate(frames_of(message, os.urandom(8))):
            self.link.inject(topic(self.link.root, message, index), each)

    def event(self, node, tier, name, **fields):
        number = self.numbers[node] = self.numbers.get(node, 0) + 1
        self.say(Event(node, tier, number, time.time(), name, fields))

    def rounds(self, closed, result):
        rows = tuple((n, 0.5 + n / 20, 1 / n, 2.5, 4, 4, 0, n * 10_000_000) for n in range(1, closed + 1))
        self.say(RunHistory(RUN, ROUNDS, rows, result))


class Watcher:
    """`emo watch` as a user starts it. `url`: without its last slash."""

    def __init__(self, broker, folder):
        self._log, config = folder / "watch.log", folder / "watch.yaml"
        wan = broker.model_dump(mode="json", exclude_none=True)
        config.write_text(json.dumps({"wan": wan, "state_dir": str(folder / "watch")}))
        self._command = [sys.executable, "-m", "emo.cli", "watch", "--config", str(config), "--port"]
        self.start("0")

    def start(self, port):
        with self._log.open("w") as log:
            self._process = subprocess.Popen([*self._command, port], stdout=log, stderr=log)
        until = time.monotonic() + 30
        while not (found := re.search(r"http://\S+", self._log.read_text())):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, "no address within 30 s"
            time.sleep(0.05)
        self.url = found[0].rstrip("/")

    def stop(self):
        self._process.terminate()
        self._process.wait(20)


def ask(url, path):
    with urllib.request.urlopen(url + path, timeout=10) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def seen(broker, tmp_path_factory):
    """A browser at the page of a fleet in its third round: fleet, observer, tab."""
    folder = tmp_path_factory.mktemp("page")
    with ExitStack() as stack:
        link = stack.enter_context(mqtt(broker))
        proxy = stack.enter_context(closing(Proxy(link.broker)))
        watcher = Watcher(proxy.broker, folder)
        stack.callback(watcher.stop)
        tab = stack.enter_context(closing(Chromium(folder / "profile")))
        tab.size(1600, 1000)
        tab.open(f"{watcher.url}/")
        tab.until("document.querySelector('#doing')?.textContent.includes('aiting')")
        waiting = tab.text("#charts"), tab.text("#heat"), tab.text("#tiles")
        fleet = Fleet(link)
        fleet.waiting, fleet.proxy = waiting, proxy
        tab.until("document.querySelectorAll('.node').length == 7 && !!document.querySelector('.uplot canvas')")
        yield fleet, watcher, tab


def test_before_anything_is_heard_it_says_what_it_waits_for(seen):
    charts, heat, tiles = seen[0].waiting
    assert "Waits for the first round to close." in charts
    assert "Waits for the first answers of an edge" in heat
    assert "NaN" not in tiles
    assert "undefined" not in tiles


def test_it_shows_what_the_json_has(seen):
    _, watcher, tab = seen
    tab.until("document.querySelector('#headline').textContent == 'Training, round 3 of 5'")
    tab.until("document.querySelector('.of-fl strong').textContent == '60.0 %'")
    tab.until("document.querySelector('.of-batches strong').textContent == '25.0 %'")
    state = ask(watcher.url, "/api/state")
    assert (state["round"], state["rounds"], state["accuracy"]) == (3, 5, 0.6)
    assert tab.text("#run") == RUN
    for node in state["nodes"]:
        assert node["id"] in tab.text(f'.node[data-id="{node["id"]}"]')
        light = tab.look(f"""document.querySelector('.node[data-id="{node["id"]}"] .light').dataset.light""")
        assert light == node["light"]
    for edge, members in EDGES.items():
        held = f"""[...document.querySelectorAll('[aria-label="Devices of {edge}"] .node')].map(e => e.dataset.id)"""
        assert tab.look(held) == list(members)
    tab.until("document.querySelector('#doing').textContent.includes('device-03')")
    tab.until("document.querySelector('#tree .facts').textContent.includes('cache 7 batches')")
    tab.until("document.querySelector('#log').textContent.includes('device-00')")


def test_the_keyboard_reaches_a_node_and_a_cell(seen):
    _, _, tab = seen
    tab.look("document.querySelector('.node[data-id=device-00]').focus()")
    for key in ("ArrowRight", "Enter"):
        tab.press(key)
    tab.until("document.querySelector('#node').open && !!document.querySelector('#node .facts')")
    assert tab.text("#node-title") == "device-01"
    assert "train.loss" in tab.text("#node table")
    tab.press("Escape")
    tab.until("!document.querySelector('#node').open")
    tab.look("document.querySelector('.map').focus()")
    for key, said in (
        ("ArrowRight", "device-00 at edge-1, column 1 of 4: sent every time"),
        ("ArrowRight", "no answer"),
    ):
        tab.press(key)
        assert said in tab.text("#heat-told")
    tab.press("ArrowRight")
    assert "left out 3 times, then sent" in tab.text("#heat-told")


def test_what_strangers_say_stays_text(seen):
    fleet, _, tab = seen
    fleet.event("edge-1", "edge", EVIL[:60], text=EVIL, **{EVIL[:50]: EVIL})
    fleet.event("device-01", "device", "problem", problem="tap", text=EVIL, count=1)
    fleet.say(
        Report("device-01", "device", RUN, time.time(), "edge-1", EVIL[:60], trouble=EVIL, figures={"<b>x</b>": 1})
    )
    tab.until(f"document.querySelector('#log').textContent.includes({json.dumps(EVIL)})")
    tab.until(f"document.querySelector('#look').textContent.includes({json.dumps(EVIL)})")
    tab.look("document.querySelector('.node[data-id=device-01]').click()")
    tab.until("document.querySelector('#node table')?.textContent.includes('<b>x</b>')")
    tab.look("document.querySelector('#node').close()")
    found = "document.querySelectorAll('main script, dialog script, main img, dialog img, main b > b').length"
    assert tab.look(found) == 0
    assert not tab.dialogs


def test_events_are_filtered_by_node_and_kind(seen):
    fleet, watcher, tab = seen
    for number in range(3):
        fleet.event("edge-2", "edge", "problem", problem="cache", text=f"the disk is full {number}", count=1)
    tab.until("document.querySelector('#log').textContent.includes('the disk is full 2')")
    tab.look("(box => {box.click()})(document.querySelector('#events-filter [name=level]'))")
    tab.until("[...document.querySelectorAll('#log li')].every(row => row.className == 'problem')")
    change = "(form => {form.node.value = 'edge-2'; form.dispatchEvent(new Event('input'))})(document.forms[0])"
    tab.look(change)
    wanted = [entry["text"] for entry in ask(watcher.url, "/api/log?node=edge-2&level=problem")["entries"]]
    shown = "[...document.querySelectorAll('#log li .text')].map(row => row.textContent)"
    tab.until(f"JSON.stringify({shown}) == {json.dumps(json.dumps(wanted, separators=(',', ':')))}")
    tab.look("(form => {form.reset(); form.dispatchEvent(new Event('input'))})(document.forms[0])")
    tab.until("document.querySelectorAll('#log li').length > 5")


def test_an_event_is_there_within_a_second(seen):
    fleet, _, tab = seen
    took = []
    for number in range(5):
        began = time.monotonic()
        fleet.event("cloud", "cloud", "paused", round=number)
        tab.until(
            f"document.querySelector('#log li').textContent.includes('paused') && document.querySelectorAll('#log .kind').length && [...document.querySelectorAll('#log .kind')].filter(e => e.textContent == 'paused').length == {number + 1}"
        )
        took.append(time.monotonic() - began)
    assert min(took) < 1, took


def test_a_killed_edge_shows_within_15_seconds(seen):
    fleet, _, tab = seen
    fleet.link.vanish(fleet.ends["edge-2"])
    tab.until("document.querySelector('.node[data-id=edge-2] .light').dataset.light == 'gone'", 15)
    assert "edge-2" in tab.text("#look")


def test_a_long_day_leaves_its_memory_flat(seen):
    fleet, _, tab = seen

    def hours(events):
        for number in range(events):
            fleet.event(f"more-{number % 50}", "device", "trained", round=number, loss=0.5)  # of one, few are shown
            if number % 300 == 0:
                fleet.rounds(1 + number // 300 % ROUNDS, {})
                tab.look("document.querySelector('[data-key=cache] select').dispatchEvent(new Event('change'))")
        tab.until(f"document.querySelector('#log').textContent.includes('round {events - 1},')")
        time.sleep(1)
        tab.do("HeapProfiler.collectGarbage")
        tab.do("HeapProfiler.collectGarbage")
        told = {each["name"]: each["value"] for each in tab.do("Performance.getMetrics")["metrics"]}
        return told["JSHeapUsedSize"] / 2**20, told["Nodes"], told["JSEventListeners"]

    tab.do("Performance.enable")
    hours(450)
    heap, nodes, listeners = hours(302)
    later, more, others = hours(1502)
    assert later - heap < 1.5, (heap, later)
    assert more - nodes < 200, (nodes, more)
    assert others - listeners < 50, (listeners, others)
    assert tab.look("document.querySelectorAll('#log li').length") == 300
    assert tab.look("document.querySelectorAll('.uplot').length") <= 9


def test_after_the_export_it_shows_the_ensemble(seen):
    fleet, _, tab = seen
    fleet.rounds(ROUNDS, {"fl": 0.75, "bagged": 0.875, "served": 0.875, "boosted.edge-1": 0.5})
    fleet.say(RunState(RUN, ROUNDS, ROUNDS, "done"))
    tab.until("document.querySelector('.of-ensemble strong').textContent == '87.5 %'")
    tab.until("document.querySelector('.of-fl strong').textContent == '75.0 %'")
    assert tab.text(".of-ensemble .note") == "+12.5 points against FL alone"
    tab.until("document.querySelector('[data-key=accuracy] .legend').textContent.includes('ensemble87.5 %')")
    assert tab.look("document.querySelector('#steps [aria-current]').textContent") == "Done"
    assert tab.look("document.querySelector('#progress').value") == 1
    fleet.link.vanish(fleet.ends["edge-1"])
    tab.until("document.querySelector('.node[data-id=edge-1] .light').dataset.light == 'gone'", 15)
    assert "edge-1" not in tab.text("#look")  # a run that is over: they may go


def test_no_other_host_is_asked_and_nothing_is_complained_of(seen):
    _, watcher, tab = seen
    assert {address for address in tab.requests if not address.startswith((f"{watcher.url}/", "data:", "blob:"))} <= {
        "about:blank"
    }
    assert tab.complaints == []


def test_it_is_small_and_quickly_there(seen):
    files = [each for each in PAGE.iterdir() if each.name != "LICENSES"]
    assert sum(each.stat().st_size for each in files) < 150_000
    assert sum(len(gzip.compress(each.read_bytes())) for each in files) < 60_000
    _, watcher, tab = seen
    took = []
    for _ in range(3):
        tab.open(f"{watcher.url}/?again={len(took)}")
        paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        took.append(tab.until(f"location.search == '?again={len(took)}' && {paint}"))
    assert min(took) < 1000, took


@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_is_wider_than_the_window(seen, width):
    _, _, tab = seen
    tab.size(width, 900)
    tab.until("!!document.querySelector('.uplot')")
    assert tab.look("document.documentElement.scrollWidth") <= width
    tab.size(1600, 1000)


def test_without_its_broker_it_says_since_when_and_comes_back(seen):
    fleet, _, tab = seen
    fleet.proxy.hangs_up = lambda _level: True
    fleet.proxy.cut()
    tab.until("document.querySelector('#banner').textContent.includes('is away since')")
    assert "broker away" in tab.text("#link")
    fleet.proxy.hangs_up = lambda _level: False
    tab.until("document.querySelector('#link').textContent == 'live'", 40)
    assert tab.text("#banner") == ""


def test_without_its_watcher_it_says_since_when_and_comes_back(seen):
    _, watcher, tab = seen
    watcher.stop()
    tab.until("document.querySelector('#banner').textContent.includes('does not answer since')")
    watcher.start(watcher.url.rpartition(":")[2])
    tab.until("document.querySelector('#link').textContent == 'live'")
    assert tab.text("#banner") == ""
