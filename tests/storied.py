"""A run of three rounds, as an observer hears it."""

from cloud_app.watch.view import View
from emo.wire.messages import Event, Report, RunHistory, RunState

NOW, RUN = 1_800_000_000.0, "20270115T080000-0"
SETTINGS = {"training.lr": 0.05, "rounds.clip_norm": None, "overlays.edges": '["edge-1"]'}
ROWS = ((1, 0.5, 1.0, 9.5, 2, 2, 0, 1000), (2, None, 0.9, 9.5, 1, 2, 1, 2000), (3, 0.75, 0.8, 9.5, 2, 2, 0, 3000))
RESULT = {"fl": 0.75, "bagged": 0.8125, "boosted.edge-1": 0.625, "served": 0.875, "version": 2}


def closed(number):
    """The event of a round, which is closed every ten seconds."""
    _, accuracy, loss, seconds, updates, sampled, left_out, _ = ROWS[number - 1]
    left = {"device-2": "late"} if left_out else {}
    fields = {"accuracy": accuracy, "loss": loss, "seconds": seconds, "updates": updates, "sampled": sampled}
    told = {"run": RUN, "round": number, "of": 3, "left_out": left, **fields}
    return Event("cloud", "cloud", number, NOW + 10 * number, "round", told)


def report(node, role, after, figures):
    return Report(node, role, RUN, NOW + after, figures=figures)


def heard(until=3, told=True):
    """(message, Unix time), in order. `until`: the last round; with all three there is a result. `told`: figures, too."""
    yield Event("cloud", "cloud", 0, NOW, "begun", {"run": RUN, "settings": SETTINGS}), NOW
    yield RunState(RUN, 1, 3, "training"), NOW
    for number in range(until + 1):
        if number:
            yield closed(number), NOW + 10 * number
            yield RunHistory(RUN, 3, ROWS[:number]), NOW + 10 * number
        if told and number < 3:
            after = 10 * number + 1
            sent = {"sent_bytes.Update": 100 * number + 100, "tap.offered": 8 * number + 8, "tap.sent": 2 * number + 2}
            edge = {"overlay.step": 50 * (number == 1) or 70 * (number == 2), "overlay.loss": 2.0 - number / 2}
            yield report("device-1", "device", after, sent), NOW + after
            yield (
                report("edge-1", "edge", after + 5 * (number == 2), {**edge, "cache.entries": 4 * number}),
                NOW + after + 5 * (number == 2),
            )
    if until == 3:
        yield RunHistory(RUN, 3, ROWS, RESULT), NOW + 35


def watched(until=3, told=True):
    view = View(10)
    for message, now in heard(until, told):
        view.take(message, now)
    return view
