"""The digests that say whether a change moved a bit."""

import numpy as np

from bench.bits import digest

ARRAYS = {"a": np.arange(4, dtype="<f4"), "b": np.zeros(2, "<i8")}


def test_the_order_does_not_count_and_every_bit_does():
    same = digest(ARRAYS)
    assert digest(dict(reversed(ARRAYS.items()))) == same
    others = [
        ARRAYS | {"a": np.nextafter(ARRAYS["a"], np.float32(9))},
        ARRAYS | {"a": ARRAYS["a"].reshape(2, 2)},
        ARRAYS | {"b": np.zeros(2, "<u8")},
        {"a": ARRAYS["a"], "c": ARRAYS["b"]},
        {"a": ARRAYS["a"]},
    ]
    assert len({same, *map(digest, others)}) == 1 + len(others)
