"""A file of state gives back what was written, and says what is wrong with any other."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from emo import snapshot_file
from emo.config import Section
from emo.errors import CacheError, ConfigError

OLD = "Begin another run."


class Said(Section):
    text: str
    numbers: list[int]


RECORD = Said(text="ü", numbers=[1, 2])
DTYPES = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "u8", "u1", "?"])


def packed(arrays: dict[str, np.ndarray], kind: str = "test") -> bytes:
    return b"".join(bytes(piece) for piece in snapshot_file.pack(kind, RECORD, arrays))


def unpacked(data: bytes, kind: str = "test") -> tuple[Said, dict[str, np.ndarray]]:
    return snapshot_file.unpack(data, kind, Said, "FILE", CacheError, OLD)


@given(
    st.dictionaries(
        st.text("abc/.", min_size=1, max_size=5),
        DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))),
        max_size=4,
    )
)
def test_what_was_written_is_read(arrays: dict[str, np.ndarray]) -> None:
    data = packed(arrays)
    record, found = unpacked(data)
    assert record == RECORD
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    assert safetensors.numpy.load(data).keys() == {*arrays, "crc32"}, "other tools can open it"


def test_an_array_that_is_no_piece_of_memory(tmp_path: Path) -> None:
    turned = np.arange(6, dtype="f4").reshape(2, 3).T
    snapshot_file.write(tmp_path / "file", "test", RECORD, {"turned": turned})
    _, found = snapshot_file.read(tmp_path / "file", "test", Said, 100, CacheError, OLD)
    assert (found["turned"] == turned).all()


@given(st.data())
def test_damage_anywhere_is_found(data: st.DataObject) -> None:
    whole = bytearray(packed({"a": np.arange(5.0)}))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((CacheError, ConfigError), match=r"^FILE: "):
        unpacked(bytes(whole))


@given(st.binary(max_size=200), st.integers(0, 200))
def test_bytes_of_anything_are_refused(noise: bytes, cut: int) -> None:
    for data in (noise, packed({"a": np.zeros(3)})[:cut]):
        with pytest.raises(CacheError, match="FILE: is cut or damaged"):
            unpacked(data)


@pytest.mark.parametrize("metadata", [{}, {"format": "1", "standing": "{}"}, {"emo": "test 2"}, {"emo": "test 0"}])
def test_another_version_is_named_with_what_to_do(metadata: dict[str, str]) -> None:
    body = safetensors.numpy.save({"a": np.zeros(3)}, metadata or None)
    with pytest.raises(ConfigError, match=r"FILE: was written by another version of EMO.*Begin another run"):
        unpacked(body + zlib.crc32(body).to_bytes(4, "little"))


def test_another_kind_is_no_other_version() -> None:
    with pytest.raises(CacheError, match="of another kind: 'other 1', not 'test'"):
        unpacked(packed({}, "other"))


def test_a_record_that_does_not_fit_is_named() -> None:
    data = packed({})
    bad = data.replace(b"numbers", b"nombres")
    body = bad[:-4]
    bad = body + zlib.crc32(body).to_bytes(4, "little")
    with pytest.raises(CacheError, match=r"FILE: .*numbers"):
        unpacked(bad)


def test_it_has_bounds(tmp_path: Path) -> None:
    path = tmp_path / "file"
    snapshot_file.write(path, "test", RECORD, {"a": np.zeros(snapshot_file.HEAD // 8 + 100)})
    with pytest.raises(CacheError, match="has more than"):
        snapshot_file.read(path, "test", Said, 8, CacheError, OLD)
    with pytest.raises(ValueError, match="too large for a file of state"):
        snapshot_file.pack("test", Said(text="x" * (snapshot_file.HEAD + 1), numbers=[]), {})
    head = json.dumps({"__metadata__": {"emo": "test 1"}}).encode()
    with pytest.raises(CacheError, match="cut or damaged"):
        unpacked((1 << 60).to_bytes(8, "little") + head)


def test_a_folder_in_its_place_is_said_whatever_the_bound(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"cannot be read: Is a directory"):
        snapshot_file.read(tmp_path, "test", Said, 1 << 50, CacheError, OLD)
