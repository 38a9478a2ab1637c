"""Tells a view what a fleet would, one second after another."""

from emo.wire.messages import Event, Status

NOW = 1_800_000_000.0


class Story:
    def __init__(self, view):
        self.view, self.now, self.numbers = view, NOW, iter(range(10_000))
        view.link(up=True, now=NOW)

    def tell(self, message, after=1.0):
        self.now += after
        return self.view.take(message, self.now)

    def event(self, who, name, role="cloud", /, after=1.0, **fields):
        event = Event(who, role, next(self.numbers), round(self.now + after, 3), name, fields)
        return self.tell(event, after)

    def here(self, *nodes):
        for node in nodes:
            role = node.partition("-")[0]
            self.tell(Status(node, role, online=True, samples=64 if role == "device" else 0), 0.0)

    def light(self, node):
        return next((each["light"], each["why"]) for each in self.view.state(self.now)["nodes"] if each["id"] == node)
