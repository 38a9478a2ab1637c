"""What a node answers, and what its log says."""

import json


def events(folder, name):
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def sent(node, message, now=0.0):
    return [each for each in node.handle(message, now) if each is not None]
