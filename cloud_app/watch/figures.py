"""What the figures of nodes (metrics.json, reports) are called in Prometheus, and mean: one line each.

A name's part in capitals stands for any of PARTS. It becomes a label, so nobody can make a series that is not listed here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from emo.wire.topics import ROUTES

_KINDS = {kind.__name__: route.link for kind, route in ROUTES.items()}

# What is logged as a warning, as well as counted.
_PROBLEMS = (
    "activations.baseless activations.out_of_scale activations.over_share cache.unwritten checkpoint.damaged "
    "checkpoint.misfit checkpoint.sampler checkpoint.unreadable checkpoint.unwritten devices.distrusted events.flood "
    "events.unwritten frames.refused inbox.full intervals.unreadable intervals.unwritten messages.abandoned messages.refused "
    "metrics.unwritten mqtt.publish_refused nodes.cannot_train nodes.unfit outbox.full overlay.rollbacks overlay.set_aside "
    "overlays.missing overlays.refused overlays.untrained record.damaged record.unwritten reports.over_share runs.old status.held training.refused "
    "updates.capped updates.refused"
)

PARTS: dict[str, tuple[str, ...]] = {
    "KIND": tuple(_KINDS),
    "LINK": ("wan", "lan"),
    "LEAST": ("0", *(str(1 << bit) for bit in range(32))),
    "TROUBLE": ("cannot_train", "unfit"),
    "LOG": ("tensorboard", "mlflow"),
    "PROBLEM": (*_PROBLEMS.split(), *(f"refused.{kind}" for kind in _KINDS)),
}


@dataclass(frozen=True)
class Metric:
    """`name`: ends with `_total` where it only grows while its process lives. `scale`: of a figure in the metric's unit."""

    name: str
    help: str
    scale: float = 1.0

    @cached_property
    def type(self) -> str:
        return "counter" if self.name.endswith("_total") else "gauge"


_DAY, _US = 86_400.0, 1e-6

FIGURES: dict[str, Metric] = {
    # of every node
    "PROBLEM": Metric(
        "emo_problems_total", "What went wrong and was logged as a warning, by its name in metrics.json."
    ),
    "bugs": Metric("emo_bugs_total", "Errors that nobody expected, with a traceback in the log."),
    "trouble.TROUBLE": Metric("emo_trouble_total", "Times that it could not train, or was not let take part."),
    "sent.KIND": Metric("emo_sent_messages_total", "Messages sent, by kind."),
    "sent_bytes.KIND": Metric("emo_sent_bytes_total", "Bytes sent, topics included, by kind of message."),
    "received_bytes.KIND": Metric("emo_received_bytes_total", "Bytes received, topics included, by kind of message."),
    "unheard.KIND": Metric("emo_unheard_messages_total", "Messages that the broker had no receiver for."),
    "outbox.superseded.KIND": Metric("emo_outbox_superseded_total", "Messages that a newer version replaced unsent."),
    "outbox.dropped.KIND": Metric("emo_outbox_dropped_total", "Messages dropped unsent, since the queue was full."),
    "outbox.refused.KIND": Metric("emo_outbox_refused_total", "Messages not taken, since the queue was full."),
    "inbox.superseded.KIND": Metric("emo_inbox_superseded_total", "Messages that a newer version replaced unread."),
    "inbox.dropped.KIND": Metric("emo_inbox_dropped_total", "Messages dropped unread: their sender had its share."),
    "chunks.late": Metric("emo_late_chunks_total", "Pieces of messages that were complete or given up already."),
    "mqtt.disconnected": Metric("emo_disconnections_total", "Connections to a broker that ended unasked."),
    "events.lost": Metric(
        "emo_events_lost_total", "Events that never reached events.jsonl: the disk was full too long."
    ),
    "events.left_out": Metric("emo_events_left_out_total", "Events not written, since one node caused too many."),
    "events.untold": Metric("emo_events_untold_total", "Events not told to observers: too many at once."),
    "record.lost": Metric(
        "emo_record_lost_lines_total", "Lines of what an observer has seen that were not written: the disk was full."
    ),
    "tls.days_left.LINK": Metric("emo_certificate_left_seconds", "Until its certificate expires, in whole days.", _DAY),
    "machine.cpu_s": Metric("emo_cpu_seconds_total", "Processor time of the process, its own and the system's."),
    "machine.memory_bytes": Metric("emo_memory_bytes", "Resident memory of the process."),
    "machine.temperature_c": Metric("emo_temperature_celsius", "The machine's hottest sensor."),
    "machine.throttled": Metric(
        "emo_throttled", "A Raspberry Pi's, now: 1 under-voltage, 2 frequency capped, 4 throttled, 8 too hot, added up."
    ),
    # the cloud
    "fl.round": Metric("emo_fl_round", "The current round, from 1."),
    "fl.rounds": Metric("emo_fl_rounds", "How many rounds there will be."),
    "fl.devices": Metric("emo_fl_devices", "Devices that are here and can take part."),
    "fl.asked": Metric("emo_fl_asked_devices", "Devices asked in the open round; 0 where none is open."),
    "fl.answered": Metric("emo_fl_answered_devices", "Devices whose update the open round has."),
    "fl.open_s": Metric("emo_fl_open_seconds", "How long the round has been open; 0 where none is."),
    "fl.left_out": Metric("emo_fl_left_out_nodes", "Nodes that are here and take no part."),
    "fl.updates": Metric("emo_fl_updates_total", "Updates averaged since the run began."),
    "fl.sfl_bytes": Metric(
        "emo_fl_split_learning_bytes_total", "What split learning would have sent since the run began."
    ),
    "updates.late": Metric("emo_updates_late_total", "Updates of a round that was closed."),
    "updates.duplicate": Metric("emo_updates_duplicate_total", "Updates that had been counted already."),
    "updates.clipped": Metric("emo_updates_clipped_total", "Updates made smaller by rounds.clip_norm."),
    "updates.outvoted": Metric("emo_updates_outvoted_total", "Updates that rounds.aggregate left out of the average."),
    "overlays.duplicate": Metric("emo_overlays_duplicate_total", "Overlays that an edge sent again."),
    # an observer
    "log.points.LOG": Metric("emo_log_points_total", "Points of curves written to TensorBoard or MLflow."),
    "log.failed.LOG": Metric("emo_log_failures_total", "Times that TensorBoard or MLflow could not be written."),
    "log.lost.LOG": Metric("emo_log_lost_runs_total", "Runs given up for newer ones while it could not be written."),
    # a device
    "train.samples": Metric("emo_train_samples", "Training samples of the device."),
    "train.round": Metric("emo_train_round", "The last round that it has trained."),
    "train.loss": Metric("emo_train_loss", "Its mean training loss in that round."),
    "tap.offered": Metric("emo_tap_offered_batches_total", "Batches that the device could have sent, in this run."),
    "tap.sent": Metric("emo_tap_sent_batches_total", "Batches that it has sent to its edge, in this run."),
    "globals.old": Metric("emo_globals_old_total", "Global models of a run that is over here."),
    # an edge
    "devices.offered": Metric(
        "emo_edge_offered_batches_total", "Batches that its devices could have sent, in this run."
    ),
    "devices.sent": Metric("emo_edge_sent_batches_total", "Batches that its devices have sent, in this run."),
    "activations.received": Metric("emo_activations_received_total", "Activation batches that came, in this run."),
    "activations.stored": Metric("emo_activations_stored_total", "Activation batches taken into the cache."),
    "activations.duplicate": Metric("emo_activations_duplicate_total", "Activation batches that it had already."),
    "controller.nan_scores": Metric(
        "emo_controller_nan_scores_total", "Comparisons of two versions that gave no number."
    ),
    "controller.guarded": Metric("emo_controller_guarded_total", "Intervals cut short: the batch had changed in size."),
    "intervals.damaged": Metric("emo_intervals_damaged_total", "Lines of the intervals' file that could not be read."),
    "overlay.step": Metric("emo_overlay_step", "Training steps that the overlay has behind it."),
    "overlay.steps": Metric("emo_overlay_steps_total", "Training steps made by this process."),
    "overlay.loss": Metric("emo_overlay_loss", "The overlay's training loss, smoothed."),
    "overlay.refused": Metric("emo_overlay_refused_steps_total", "Training steps without effect: not finite."),
    "overlay.failed": Metric("emo_overlay_failed_steps_total", "Training steps that ended in an error."),
    "overlay.left_out": Metric("emo_overlay_left_out_batches_total", "Batches not trained on: of devices distrusted."),
    "overlay.distrusted": Metric(
        "emo_overlay_distrusted_devices", "Devices whose labels the FL model does not believe."
    ),
    "cache.entries": Metric("emo_cache_batches", "Batches in the cache."),
    "cache.bytes": Metric("emo_cache_bytes", "The cache's files."),
    "cache.unsynced": Metric("emo_cache_unsynced_batches", "Batches whose newest version may not be on the disk yet."),
    "cache.fresh": Metric("emo_cache_fresh_batches", "Batches never trained on."),
    "cache.memory_entries": Metric("emo_cache_memory_batches", "Batches in the memory's part of the cache."),
    "cache.memory_bytes": Metric("emo_cache_memory_bytes", "Memory that the cache has allocated."),
    "cache.stored": Metric("emo_cache_stored_total", "Batches stored."),
    "cache.ignored": Metric("emo_cache_ignored_total", "Batches not stored: their version was no newer."),
    "cache.refused": Metric("emo_cache_refused_total", "Batches not stored: no room, or the disk refused."),
    "cache.evicted": Metric("emo_cache_evicted_total", "Batches removed to make room."),
    "cache.damaged": Metric("emo_cache_damaged_total", "Files found damaged and set aside."),
    "cache.hits": Metric("emo_cache_hits_total", "Batches asked for that were there."),
    "cache.misses": Metric("emo_cache_misses_total", "Batches asked for that were not there."),
    "cache.memory_hits": Metric("emo_cache_memory_hits_total", "Samples that training found in memory."),
    "cache.disk_reads": Metric("emo_cache_disk_reads_total", "Samples that training had to wait for."),
    "cache.prefetched": Metric("emo_cache_prefetched_total", "Batches read ahead into memory."),
    "cache.trained": Metric("emo_cache_trained_total", "Samples trained on."),
    "cache.starved_us": Metric("emo_cache_starved_seconds_total", "Time that training waited for the disk.", _US),
    "cache.age.LEAST": Metric(
        "emo_cache_age_batches", "Batches by age in versions (rounds x epochs): that at least, less than twice that."
    ),
    "cache.trained_times.LEAST": Metric(
        "emo_cache_trained_times_batches", "Batches by how often trained on: that at least, less than twice that."
    ),
    "disk.free_bytes": Metric(
        "emo_disk_free_bytes", "Free space of the cache's file system, for those who are not root."
    ),
    "disk.size_bytes": Metric("emo_disk_size_bytes", "Size of the cache's file system."),
}


def _labels(part: str, value: str) -> str:
    """As they stand in the text format, with a comma before each."""
    link = f',link="{_KINDS[value]}"' if part == "KIND" else ""
    return f',{part.lower()}="{value}"{link}' if part else ""


def _known() -> Iterator[tuple[str, tuple[Metric, str]]]:
    for pattern, metric in FIGURES.items():
        found = re.search("|".join(PARTS), pattern)
        part = found.group() if found else ""
        for value in PARTS.get(part, ("",)):
            yield (pattern.replace(part, value) if part else pattern), (metric, _labels(part, value))


KNOWN: dict[str, tuple[Metric, str]] = dict(_known())
"""A figure's name -> its metric, and what that has of labels beside node and tier."""
