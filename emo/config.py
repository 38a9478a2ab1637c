"""One validated model a tier: names, types, bounds and defaults of every field.

Reads no file (config_file.py does); opens no data, no model, no socket; imports no torch, so that
`emo doctor` and the endpoint can read a configuration on a machine without it.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

from emo import places, user_function

# No '/', '+', '#': an id is a topic level (CVE-2017-7650), a folder and a certificate name.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Id = Annotated[str, StringConstraints(pattern=f"^{ID.pattern}$")]
MAX_EPOCHS = 100  # a round
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(gt=0)]

# How activations are written on the wire (wire/codec.py), and weights (wire/compression.py).
DELTA = "-delta"
Codec = Literal["fp32", "fp16", "int8", "int4", "int3", "int2", "int8-delta", "int4-delta", "int3-delta", "int2-delta"]
CODECS: tuple[str, ...] = get_args(Codec)
Whole = Literal["fp32", "fp16"]  # read without a base
Form = Literal[Whole, "delta-fp16", "delta-int8"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        return places.home(value) if isinstance(value, Path) else value


class Tls(Section):
    """PEM files, as `emo pki` makes them: the CA (or two, while they change), this node's certificate, its key. Without
    `ca`: the CAs that this system trusts. Without the other two: the broker knows its clients by `username`."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _cert_has_its_key(self) -> "Tls":
        if (self.cert is None) != (self.key is None):
            msg = "cert and key go together"
            raise ValueError(msg)
        return self


class Broker(Section):
    """Where an MQTT broker listens. `chunk_kib`: the largest piece of a message that goes into one packet; the
    broker's own limit holds where it names one. `queue_*`: what may wait to be sent while it is away.
    `tls`: left out, nothing is encrypted and nobody has to say who he is. `host` must stand in its certificate; of an
    IPv6 address with or without brackets. `username` with `password`, from the environment (EMO_WAN__PASSWORD), or with
    `password_file`, whose first line it is. `transport`: websockets, where only HTTP's ports are open; `path` is theirs."""

    host: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    root: Id = "emo"
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30
    chunk_kib: Annotated[int, Field(ge=4, le=1024)] = 256
    queue_messages: Positive = 64
    queue_mib: Positive = 64
    tls: Tls | None = None
    username: Annotated[str, StringConstraints(min_length=1, max_length=1000)] | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    transport: Literal["tcp", "websockets"] = "tcp"
    path: Annotated[str, StringConstraints(pattern="^/[!-~]*$")] = "/mqtt"

    @property
    def certified(self) -> bool:
        """Whether a certificate says to the broker who this node is."""
        return self.tls is not None and self.tls.cert is not None

    @model_validator(mode="after")
    def _one_password_of_somebody(self) -> "Broker":
        if self.password is not None and self.password_file is not None:
            msg = "password and password_file: which of them?"
            raise ValueError(msg)
        if self.username is None and (self.password or self.password_file) is not None:
            msg = "a password needs a username"
            raise ValueError(msg)
        return self

    @field_validator("host")
    @classmethod
    def _host_alone(cls, text: str) -> str:
        return places.host(text)


class Model(Section):
    """A split network. `name`: vgg6, vgg11, mobilenet6, mobilenet12, cnn, or your `package.module:function`."""

    name: str = "cnn"
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    norm: Literal["batch", "group", "none"] = "group"
    input: tuple[Positive, ...] = (1, 8, 8)
    classes: Annotated[int, Field(ge=2)] = 10


class Data(Section):
    """`name`: digits, cifar10, cifar100, folder, or your `package.module:function`; `dir` where it lies: a device
    needs the training part only, the cloud the test part.
    `heldout`: the share of every class's training samples that the cloud keeps, and no device trains on."""

    name: str = "digits"
    dir: Path | None = None
    seed: Seed = 0
    heldout: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Partition(Section):
    """This device's share when many devices share one dataset. Left out: all of the data is its own.

    `alpha` is Hsu et al.'s, of Dir(alpha x prior): with ten classes, 5 is what others call Dir(0.5)."""

    scheme: Literal["iid", "dirichlet", "shards"] = "dirichlet"
    devices: Positive
    index: Annotated[int, Field(ge=0)]
    alpha: Annotated[float, Field(gt=0)] = 1.0
    seed: Seed = 0

    @model_validator(mode="after")
    def _index_in_range(self) -> "Partition":
        if self.index >= self.devices:
            msg = f"index {self.index} is not below devices {self.devices}"
            raise ValueError(msg)
        return self


class Training(Section):
    """What every device does in a round (sent to it by the cloud): SGD over its fixed batches.

    `update`: the form its update comes back in (wire/compression.py). All but fp32 round it."""

    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = 1
    lr: Annotated[float, Field(gt=0, le=10)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    update: Form = "fp32"


_MORE = {"trimmed-mean": 1, "multi-krum": 3}  # updates than two for each that is hostile


class Rounds(Section):
    """`per_round`: devices sampled a round (all that live when left out). `quorum`: share that closes it late.
    `model`: the form of the global model on its way to them; fp16 rounds it, for the cloud too.

    Against devices that are broken or hostile (cloud_app/aggregation/aggregator.py): `aggregate` is what updates come to; trimmed-mean
    and multi-krum bear `attackers`, a share of those that were asked. `clip_norm` shortens an update to that L2 norm, or
    to the round's median; one over `max_norm` times the model's own is refused. `max_weight`: in the mean no device
    counts for more than so many equal shares of what those who are asked announce, whatever it claims."""

    rounds: Positive = 20
    per_round: Positive | None = None
    min_devices: Positive = 1
    quorum: Annotated[float, Field(gt=0, le=1)] = 0.8
    deadline_s: Seconds = 300.0
    give_up_s: Seconds = 1800.0
    seed: Seed = 0
    evaluate_every: Positive = 1
    model: Whole = "fp32"
    aggregate: Literal["mean", "median", "trimmed-mean", "multi-krum"] = "mean"
    attackers: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    clip_norm: Annotated[float, Field(gt=0)] | Literal["median"] | None = None
    max_norm: Annotated[float, Field(gt=0)] = 10.0
    max_weight: Annotated[float, Field(ge=1)] | None = 2.0

    def hostile(self, devices: int) -> int:
        """How many of `devices` that were asked may be hostile."""
        return math.ceil(round(self.attackers * devices, 9))

    def least(self, asked: int) -> int:
        """How many updates the rule needs where `asked` devices were asked."""
        more = _MORE.get(self.aggregate)
        return 1 if more is None else 2 * self.hostile(asked) + more

    @model_validator(mode="after")
    def _outvotes_the_hostile(self) -> "Rounds":
        more = _MORE.get(self.aggregate)
        first = min(self.min_devices, self.per_round or self.min_devices)
        for asked in range(first, (self.per_round or first + 100) + 1) if more else ():
            closes, hostile = math.ceil(round(self.quorum * asked, 9)), self.hostile(asked)
            if closes < self.least(asked):
                msg = (
                    f"aggregate {self.aggregate} needs 2 x {hostile} + {more} updates where {hostile} of {asked} devices may be "
                    f"hostile (attackers {self.attackers:g}), and a round may close with {closes} (quorum {self.quorum:g}): "
                    "raise min_devices, per_round or quorum, or lower attackers"
                )
                raise ValueError(msg)
        return self


class Overlays(Section):
    """The edges whose overlays make the ensemble, and how long to wait for them after the last round.

    `combine`: the mean of the pairs' probabilities, or of their logits as in the paper, which an edge that
    never saw a class spoils for that class. `head`: the FL model's own head is a member too. `fit`: by the data that
    `data.heldout` keeps, choose the members' weights in that mean, or leave members out, or both.
    `start_s`: how long the first round waits for the edges.
    `judge`: the edges are sent the FL model's head every round, and leave out devices whose labels it finds less likely
    than a guess.
    `fresh_rounds`: in so many of the last rounds the edges get every batch, whatever the policy: what the overlay
    trains on last is what it will be served with."""

    combine: Literal["probabilities", "logits"] = "probabilities"
    head: bool = False
    fit: Literal["none", "weights", "members", "both"] = "none"
    edges: tuple[Id, ...] = ()
    start_s: Annotated[float, Field(ge=0)] = 60.0
    judge: bool = True
    fresh_rounds: Annotated[int, Field(ge=0)] = 0
    wait_s: Seconds = 600.0


class Export(Section):
    """A model repository in Triton's layout; each run adds a version of `name`. `int8`: quantised, where that is
    faster here and about as accurate. `opset`: of ONNX, for engines that do not know the newest. `at_least`: where
    the ensemble is less accurate than the FL model alone (`head`), that is exported; on the data that `data.heldout` keeps,
    where there is some, else on the test set. `answers`: the file also gives what each member answers for itself, and
    the FL model; where its head is no member it makes the file larger."""

    models: Path = Path("models")
    name: Id = "emo"
    int8: bool = False
    opset: Annotated[int, Field(ge=18, le=24)] = 20
    at_least: Literal["head", "none"] = "head"
    answers: bool = True


class Tap(Section):
    """Activations to the edge. `codec` is named in each frame, so a fleet may mix them: bits per channel, those in
    "-delta" against the version that the edge has confirmed."""

    enabled: bool = True
    codec: Codec = "int2-delta"


class Cache(Section):
    """`memory_mib`: level 1, in the overlay's device memory; with `memory_share` no more than that share of all batches.
    Level 2 is the folder, `budget_mib` of it at most: then `eviction` says what goes, in equal shares a device.
    `device_batches`: as many different ones it takes of a device, and more than that in all only up to four times what
    the other devices have sent. `batch_samples`: of one batch at most.
    `durability`: what is on the disk when the broker is told that a batch has arrived: each batch by itself, those
    that came together, or nothing for certain."""

    dir: Path = Path("cache")
    memory_mib: Positive = 256
    memory_share: Annotated[float, Field(gt=0, le=1)] | None = None
    budget_mib: Positive | None = None
    eviction: Literal["oldest", "fifo", "lowest-loss"] = "oldest"
    sampling: Literal["mixed", "uniform", "importance", "fresh"] = "mixed"
    durability: Literal["batch", "group", "none"] = "group"
    device_batches: Positive = 4096
    batch_samples: Annotated[int, Field(ge=1, le=4096)] = 256


POLICY = re.compile(r"always|once|svcca|cka|fixed\((?P<n>[1-9][0-9]{0,8})\)")


class Controller(Section):
    """When a batch is sent again (Algorithm 1 of the paper, with a cap). `policy`: svcca and cka by the score of
    that name, always, once, or fixed(n), which skips n attempts after each send. `max_change`: the relative L2
    change of a batch at which svcca and cka skip one attempt at most; at half of it four, at a quarter 16."""

    policy: str = "svcca"
    max_interval: Annotated[float, Field(ge=1)] = 4.0
    max_age: Positive = 128
    max_change: Annotated[float, Field(gt=0)] = 2.0

    @field_validator("policy")
    @classmethod
    def _policy_is_known(cls, policy: str) -> str:
        if not POLICY.fullmatch(policy):
            msg = "must be svcca, cka, always, once or fixed(n) with n of 1 or more, as in fixed(4)"
            raise ValueError(msg)
        return policy


class Overlay(Section):
    """`batches`: how many cached batches make one step: each is one device's, often nearly one class.
    `replay_ratio`: batches replayed per batch that a device offered. `clip`: largest norm of a gradient.
    `budget`: that ratio, or time: all that there is until the run ends. `schedule`: cosine ends at a hundredth of `lr`.
    `average`: of the weights over the last 1 / (1 - average) steps is what is sent; 0: the last step's own.
    `amp`: bfloat16 where there is a GPU. `mixup` (its alpha, 0: none) and `flip` augment activations.
    `checkpoint_steps`: after a restart no more steps than these are lost.
    After the last round the overlay is sent when nothing has come for `patience_s`, at `finish_s` in any case."""

    lr: Annotated[float, Field(gt=0, le=10)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    clip: Annotated[float, Field(gt=0)] = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.998
    batches: Annotated[int, Field(ge=1, le=256)] = 4
    budget: Literal["ratio", "time"] = "ratio"
    replay_ratio: Annotated[float, Field(gt=0)] = 4.0
    schedule: Literal["constant", "cosine"] = "constant"
    amp: bool = True
    compile: bool = False
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    flip: bool = False
    checkpoint_steps: Positive = 500
    seed: Seed = 0
    patience_s: Seconds = 2.0
    finish_s: Seconds = 540.0


NETWORKS = ("cnn", "mobilenet6", "mobilenet12", "vgg6", "vgg11")
DATASETS = ("cifar10", "cifar100", "digits", "folder")


def _known(*names: str) -> AfterValidator:
    """In a configuration, not where it is used: whoever reads one needs no torch to say that there is no such name."""

    def check(section: Any) -> Any:
        if wrong := user_function.unknown(section.name, names):
            msg = f"name: {wrong}"
            raise ValueError(msg)
        return section

    return AfterValidator(check)


class Tier(Section):
    """What every tier has. `state_dir` holds metrics.json and events.jsonl; `threads` is torch's. `report_s`: seconds between
    two reports to `emo watch`, at least; None: it is told nothing."""

    id: Id
    wan: Broker = Broker()
    model: Annotated[Model, _known(*NETWORKS)] = Model()
    state_dir: Path = Path("state")
    threads: Positive = 1
    report_s: Annotated[float, Field(ge=5, le=3600)] | None = 5.0


class DeviceConfig(Tier):
    lan: Broker = Broker()
    edge: Id | None = None
    data: Annotated[Data, _known(*DATASETS)] = Data()
    partition: Partition | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    tap: Tap = Tap()


class EdgeConfig(Tier):
    lan: Broker = Broker()
    devices: tuple[Id, ...]
    cache: Cache = Cache()
    controller: Controller = Controller()
    overlay: Overlay = Overlay()


class Served(Section):
    """An endpoint (`emo serve`) and the model there; `ca`: PEM certificates to believe of an https one."""

    url: Annotated[str, StringConstraints(pattern="^https?://[!-~]+$", max_length=1000)]
    name: Id = "emo"
    api_key_file: Path | None = None
    ca: Path | None = None


class WatchConfig(Section):
    """The observer: its page listens at `host`, `port` (0: any free one), with TLS where `tls_cert` and `tls_key` are, for
    those who have a key of `api_key_file`, or for all. `fleet`: fleet.yaml; then only its members are shown. `nodes`: how
    many at most, the rest is counted. `record_mib`: of what it has seen, in its state_dir. `models`: the cloud's export.models,
    where that is on this machine: for --mlflow, which gets the model, too."""

    id: Id = "watch"
    wan: Broker = Broker()
    state_dir: Path = Path("state")
    host: Annotated[str, StringConstraints(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    api_key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    fleet: Path | None = None
    nodes: Annotated[int, Field(ge=1, le=100_000)] = 4000
    record_mib: Positive = 64
    endpoint: Served | None = None
    models: Path | None = None

    @model_validator(mode="after")
    def _cert_has_its_key(self) -> "WatchConfig":
        if (self.tls_cert is None) != (self.tls_key is None):
            msg = "tls_cert and tls_key go together"
            raise ValueError(msg)
        return self


class CloudConfig(Tier):
    id: Id = "cloud"
    data: Annotated[Data, _known(*DATASETS)] = Data()
    rounds: Rounds = Rounds()
    training: Training = Training()
    overlays: Overlays = Overlays()
    export: Export = Export()
