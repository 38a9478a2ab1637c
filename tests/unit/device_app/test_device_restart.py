"""A device that comes back, or is asked again: the same bits, and never an answer to another question."""

import numpy as np
import pytest
from fleet import MODEL, dataset

from device_app.node import DeviceNode
from emo.config import DeviceConfig, Training
from emo.journal import Journal
from emo.models import split_network
from emo.runtime.inbox import Inbox
from emo.wire.compression import digest
from emo.wire.messages import GlobalModel, Status, Update

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = DeviceConfig.model_validate({"id": "d", "model": MODEL, "edge": "edge-1"})
START = split_network.weights(split_network.network(MODEL, 3))


def node():
    return DeviceNode(CONFIG, dataset(), Journal())


def asked(number=1, weights=START, run="run-1", devices=("d",), form="fp32"):
    return GlobalModel(run, number, devices, Training(lr=0.05, update=form), weights)


def answers(device, message):
    return [out for out in device.handle(message, 0.0) if isinstance(out, Update)]


def answer(device, message):
    (found,) = answers(device, message)
    return found


def moved():
    return {name: array + np.float32(0.01) for name, array in START.items()}


@pytest.mark.parametrize("form", ["fp32", "delta-int8"])
def test_a_device_that_died_in_a_round_gives_the_bits_that_it_would_have_given(form):
    lived, died = node(), node()
    stream = died.handle(asked(form=form), 0.0)
    for _ in range(3):
        next(stream)  # three batches, and then no more
    came_back = node()
    given = [answer(each, asked(form=form)) for each in (lived, came_back)]
    assert digest(given[0].weights) == digest(given[1].weights)
    # One that has trained other rounds before gives the same, too.
    answer(lived, asked(2, moved(), form=form))
    given = [answer(each, asked(3, form=form)) for each in (lived, node())]
    assert digest(given[0].weights) == digest(given[1].weights)


def test_asked_again_it_says_what_it_said_without_training():
    device = node()
    first = answer(device, asked())
    assert list(device.handle(asked(), 0.0)) == [first]
    assert list(device.handle(asked(devices=("other",)), 0.0)) == []  # who was counted is not asked


def test_the_same_round_from_another_model_is_another_question():
    device = node()
    first = answer(device, asked())
    other = answer(device, asked(weights=moved()))
    assert digest(other.weights) != digest(first.weights)
    assert digest(answer(node(), asked(weights=moved())).weights) == digest(other.weights)


def test_a_cloud_that_went_back_a_round_gets_that_round_again():
    device = node()
    first = answer(device, asked(1))
    answer(device, asked(2, moved()))
    assert digest(answer(device, asked(1)).weights) == digest(first.weights)


def test_what_it_did_is_in_its_journal_with_digests(tmp_path):
    device = DeviceNode(CONFIG, dataset(), Journal(tmp_path))
    update = answer(device, asked())
    text = (tmp_path / "events.jsonl").read_text()
    assert f'"base": "{digest(START)}", "digest": "{digest(update.weights)}"' in text


def test_a_device_that_fell_behind_skips_the_rounds_that_are_closed():
    inbox = Inbox(1 << 20, Journal())
    inbox.put(Status("cloud", "cloud", online=True), [0], 10, 0)
    for number in (1, 2, 3):
        inbox.put(asked(number), [number], 1000, 0)
    first, second = inbox.get(), inbox.get()
    assert isinstance(first[0], Status)
    assert second[0].round == 3
    assert second[1] == [1, 2, 3]  # all of them are acknowledged
