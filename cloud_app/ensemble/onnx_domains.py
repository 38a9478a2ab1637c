"""Removes the operator sets that an ONNX file names but does not use: some engines know only those of ONNX itself."""

from collections.abc import Iterable, Iterator

import onnx


def only_used(model: onnx.ModelProto) -> None:
    """Takes the others out of `model`."""
    for part, nodes in ((model, model.graph.node), *((each, each.node) for each in model.functions)):
        used = {"", *_domains(nodes)}
        kept = [each for each in part.opset_import if each.domain in used]
        del part.opset_import[:]
        part.opset_import.extend(kept)


def _domains(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.domain
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _domains(graph.node)
