"""The cloud of a simulated fleet: the node that a real fleet runs, on a network in memory and in virtual time."""

from collections.abc import Callable, Iterable, Sequence

from cloud_app.rounds.node import CloudNode
from cloud_app.rounds.state import begin
from emo.journal import Journal
from emo.models.state import PLAIN, Layout
from emo.runtime.channel import Listener
from emo.wire.messages import (
    GlobalHead,
    GlobalModel,
    Message,
    OverlayWeights,
    RunState,
    Status,
    Update,
    Weights,
)
from emo.wire.topics import subscription
from testbed import node_configs
from testbed.fleet.memory_network import MemoryChannel, Network
from testbed.plan import Plan
from testbed.workers.packets import CHUNK, ROOT, Packet

RUN = "simulation"
_SLACK_S = 1e-3  # a deadline is over when this has passed, too


class Cloud(Listener):
    """Opens round `number` at virtual time `now`, in seconds, from `weights`. `samples`: of each device; they are all
    here, and the edges too. `deadline_s`: when the cloud closes a round without those who are missing, if they are
    few; it gives up after six times that. `layout`: of the model."""

    def __init__(
        self,
        plan: Plan,
        weights: Weights,
        samples: Sequence[int],
        deadline_s: float,
        number: int = 1,
        now: float = 0.0,
        layout: Layout = PLAIN,
    ) -> None:
        self.now, self._deadlines = now, (deadline_s, 6 * deadline_s)
        self._journal, self._network = Journal(), Network(ROOT, CHUNK)
        config = node_configs.cloud(plan, *self._deadlines)
        self.state = begin(config, RUN, weights)
        self.state.round = number
        self.node = CloudNode(config, self.state, self._journal, layout=layout)
        self._published: dict[type[Message], list[Packet]] = {
            GlobalModel: [],
            RunState: [],
            GlobalHead: [],
        }
        for kind in self._published:
            self._network.listen(subscription(ROOT, kind), self._note(kind))
        filters = [subscription(ROOT, kind) for kind in (Status, Update, OverlayWeights)]
        self._channel = MemoryChannel(self._network, "cloud", filters, self._journal, limits=self.node.limits())
        self._channel.start(self)
        if number > plan.rounds:
            return  # nothing is left to open
        for edge in config.overlays.edges:
            self._channel.publish(Status(edge, "edge", online=True))
        for device, count in enumerate(samples):
            self._channel.publish(Status(node_configs.device_id(plan, device), "device", online=True, samples=count))
        self._pump()

    @property
    def model(self) -> list[Packet]:
        """The GlobalModel that it published last."""
        return self._published[GlobalModel]

    @property
    def run_state(self) -> list[Packet]:
        """The RunState that it published last."""
        return self._published[RunState]

    @property
    def head(self) -> list[Packet]:
        """The GlobalHead that it published last; none without edges."""
        return self._published[GlobalHead]

    def close(self, updates: Sequence[tuple[float, Sequence[Packet]]]) -> float:
        """The open round, to its end: each update's packets at its second after the round was opened. Returns the seconds
        that the round has taken. The next one is open then, if there is one. Raises QuorumError."""
        opened, number = self.now, self.state.round
        events: list[tuple[float, Sequence[Packet]]] = [
            *updates,
            *((at + _SLACK_S, ()) for at in self._deadlines),
        ]
        for at, sent in sorted(events, key=lambda event: event[0]):
            self.now = opened + at
            self._take(sent)
            if self.state.round != number or self.state.phase != "collecting":
                break
        return self.now - opened

    def gather(self, overlays: Sequence[Sequence[Packet]]) -> None:
        """After the last round: what the edges send."""
        for sent in overlays:
            self._take(sent)

    def _take(self, sent: Sequence[Packet]) -> None:
        for name, data in sent:
            self._network.inject(name, data)
        self._pump()
        self._publish(self.node.tick(self.now))
        self._pump()

    def _pump(self) -> None:
        self._network.pump()
        if self._journal.counts["bugs"]:
            raise RuntimeError("the cloud failed on a message; the log says how")

    def handle(self, message: Message) -> None:
        self._publish(self.node.handle(message, self.now))

    def _publish(self, messages: Iterable[Message | None]) -> None:
        for message in messages:
            if message is not None:
                self._channel.publish(message)

    def _note(self, kind: type[Message]) -> Callable[[str, bytes], None]:
        def take(name: str, data: bytes) -> None:
            if name.endswith("/0"):
                self._published[kind] = []
            self._published[kind].append((name, data))

        return take
