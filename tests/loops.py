"""Models that take as long as whoever made them likes."""

import numpy as np
from onnx import TensorProto, helper, load, numpy_helper, save


def endless(path, first=-1e9):
    """Changes the ONNX file: its first output waits for a loop that goes on for ever where a value is `first` or more."""
    model = load(path)
    (image,) = model.graph.input
    out = model.graph.output[0].name
    value = helper.make_tensor_value_info
    names = ("go", "kept")
    kinds = (TensorProto.BOOL, TensorProto.FLOAT)
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [name + "_out"]) for name in names],
        "body",
        [
            value("i", TensorProto.INT64, []),
            *(value(name, kind, []) for name, kind in zip(names, kinds, strict=True)),
        ],
        [value(name + "_out", kind, []) for name, kind in zip(names, kinds, strict=True)],
    )
    for node in model.graph.node:
        for at, name in enumerate(node.output):
            node.output[at] = "before" if name == out else name
        for at, name in enumerate(node.input):
            node.input[at] = "before" if name == out else name
    model.graph.node.extend(
        [
            helper.make_node("Cast", [image.name], ["as_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["as_float"], ["most"], keepdims=0),
            helper.make_node("GreaterOrEqual", ["most", "first"], ["goes"]),
            helper.make_node("Loop", ["times", "goes", "zero"], ["same"], body=body),
            helper.make_node("Add", ["before", "same"], [out]),
        ]
    )
    for name, number in (("times", np.int64(2**62)), ("first", np.float32(first)), ("zero", np.float32(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(number), name))
    save(model, path)
    return path
