"""What a file of level 2 holds: plain HDF5 that says what it is, or a miss."""

import io
import zlib

import h5py
import numpy as np
import pytest
from caches import LABELS, acts, batch_files, everything
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_app.cache import hdf5, hdf5_template
from edge_app.cache.disk import DiskCache
from emo.config import CODECS
from emo.errors import CacheError
from emo.wire import codec


def test_the_file_is_plain_hdf5_that_says_what_it_is(disk, tmp_path):
    disk.put("d", 3, 9, acts(1.5), LABELS)
    (path,) = batch_files(tmp_path)
    with h5py.File(path) as file:
        said = file.attrs
        assert (said["device"], said["batch"], said["version"], said["codec"]) == (b"d", 3, 9, b"")
        assert list(said["shape"]) == [4, 3, 2, 2]
        assert said["dtype"] == b"<f4"
        assert said["checksum"] == zlib.crc32(acts(1.5))
        assert (file["activations"][()] == 1.5).all()
        assert list(file["labels"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4", "int3", "int2"])
def test_a_frame_is_stored_as_it_came_and_read_as_an_array(tmp_path, name):
    rng = np.random.default_rng(1)
    frames = [codec.encode(rng.standard_normal((4, 3, 5, 2)), name) for _ in range(3)]
    for _ in range(2):
        with DiskCache(tmp_path) as disk:
            for version, frame in enumerate(frames):
                disk.put("d", 7, version, frame, LABELS)
            entry = disk.get("d", 7)
            assert (entry.version, entry.codec, entry.activations.dtype) == (2, name, np.float32)
            assert entry.activations.tobytes() == codec.decode(frames[2], 1000).tobytes()
            np.testing.assert_array_equal(entry.labels, LABELS)
    (path,) = batch_files(tmp_path)
    with h5py.File(path) as file:
        assert file["activations"][()].tobytes() == frames[2]
        assert (file.attrs["codec"].decode(), file.attrs["dtype"]) == (name, b"<f4")
        assert list(file.attrs["shape"]) == [4, 3, 5, 2]


def test_a_frame_that_cannot_be_decoded_is_a_miss(disk, tmp_path, monkeypatch):
    disk.put("d", 0, 1, codec.encode(acts(1), "int8"), LABELS)

    def refuse(frame, limit):
        assert limit == 4 * 4 * 3 * 2 * 2  # what may be allocated: as the shape says
        raise codec.CodecError("damaged")

    monkeypatch.setattr(codec, "decode", refuse)
    assert disk.get("d", 0) is None
    assert disk.stats()["damaged"] == 1
    assert len(everything(tmp_path / "damaged")) == 1


def test_whole_hdf5_that_is_not_ours_is_a_miss(disk, tmp_path):
    disk.put("d", 0, 1, acts(0), LABELS)
    disk.close()
    (path,) = batch_files(tmp_path)
    path.unlink()
    text = np.bytes_
    good = {
        "device": text("d"),
        "version": 1,
        "checksum": 0,
        "shape": [4],
        "dtype": text("<f4"),
        "codec": text(""),
    }
    floats, labels = np.zeros(4, np.float32), np.arange(4)
    cases = [
        {},
        {"activations": "text", "labels": "text", **good},
        {"activations": [["a", "b"]], "labels": labels, **good},
        {"activations": floats, "labels": floats, **good},
        {"activations": floats, "labels": labels, **good, "shape": [2**40]},
        {"activations": floats, "labels": labels, **good, "dtype": text("O")},
        {"activations": floats, "labels": labels, **good, "codec": text("int4")},
        {"activations": np.zeros(9, np.uint8), "labels": labels, **good, "codec": text("int4")},
        {"activations": np.zeros(4, ">f4"), "labels": labels, **good},
        {"activations": floats, "labels": labels, **good, "device": text("e")},
        {"activations": floats, "labels": labels, **good, "version": 2},
        {"activations": floats, "labels": labels, **good, "device": 1.5},
    ]
    for batch, case in enumerate(cases):
        other = path.with_name("other")
        with h5py.File(other, "w") as file:
            for name, value in {"batch": batch, **case}.items():
                if name in ("activations", "labels"):
                    file[name] = value
                else:
                    file.attrs[name] = value
        other.rename(other.with_name(f"{batch}-1-{zlib.crc32(other.read_bytes()):08x}.h5"))
    with DiskCache(tmp_path) as again:
        assert len(again.keys()) == len(cases)
        assert [again.get("d", batch) for batch in range(len(cases))] == [None] * len(cases)
        assert again.stats()["damaged"] == len(cases)


def test_a_file_that_another_program_wrote_as_we_do_is_read(disk, tmp_path):
    """The same content, other places, a newer format."""
    disk.put("d", 0, 1, acts(0), LABELS)
    (path,) = batch_files(tmp_path)
    disk.close()
    said = {"batch": 1, "version": 3, "checksum": 0, "shape": [4, 3]}
    said |= {"device": np.bytes_("d"), "dtype": np.bytes_("<f4"), "codec": np.bytes_("")}
    other = path.with_name("other")
    with h5py.File(other, "w", libver="latest") as file:
        file["activations"], file["labels"] = acts(7, (4, 3)), LABELS
        file.attrs.update(said)
    other.rename(other.with_name(f"1-3-{zlib.crc32(other.read_bytes()):08x}.h5"))
    with DiskCache(tmp_path) as again:
        assert (again.get("d", 1).activations == 7).all()
        assert again.get("d", 0) is not None


def test_what_cannot_be_stored_is_refused(disk, tmp_path):
    delta = codec.encode(acts(1.01), "int8-delta", acts(1))
    crafted = bytearray(codec.encode(acts(1), "int8"))
    crafted[8:12] = (2**31).to_bytes(4, "little")
    crafted[-4:] = zlib.crc32(crafted[:-4]).to_bytes(4, "little")
    for match, activations, labels in (
        ("do not fit", acts(0), LABELS[:3]),
        ("are empty", np.zeros((0, 5), np.float32), LABELS[:0]),
        ("object", np.array([None] * 4), LABELS),
        ("float64 labels", acts(0), LABELS * 0.5),
        ("damaged", codec.encode(acts(0), "int8")[:-1] + b"\0", LABELS),
        ("over the limit", bytes(crafted), LABELS),
        ("do not fit", codec.encode(acts(0), "int8"), LABELS[:3]),
    ):
        with pytest.raises(CacheError, match=match):
            disk.put("d", 0, 0, activations, labels)
    if codec.head(delta, 1000).base:
        with pytest.raises(CacheError, match="delta"):
            disk.put("d", 0, 0, delta, LABELS)
    with pytest.raises(CacheError, match="not a device id"):
        disk.put("d", -1, 0, acts(0), LABELS)
    with pytest.raises(CacheError, match="version"):
        disk.put("d", 0, -1, acts(0), LABELS)
    disk.close()
    with pytest.raises(CacheError, match="closed"):
        disk.get("d", 0)
    assert everything(tmp_path) == ["lock"]


@settings(max_examples=60)
@given(
    hnp.arrays(
        st.sampled_from(["<f4", "<f2", ">f8", "|u1", "<i4"]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6),
    ),
    st.sampled_from(["<i8", "|u1", "<i4"]),
    st.sampled_from([None, *CODECS]),
    st.integers(0, 2**64 - 1),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
)
def test_what_is_filled_into_a_template_is_what_hdf5_reads(array, of_labels, name, number, device):
    """Also the other way: without HDF5 the same is read. And the checksum is that of all bytes."""
    labels = np.arange(len(array)).astype(of_labels)
    with np.errstate(over="ignore"):  # infinite: it goes as fp32
        content = array if name is None else codec.encode(array, name)
    form = hdf5_template.form_of(content, labels)
    pieces, crc = hdf5_template.pack(form, device, number, number // 3, content, labels)
    data = bytearray(b"".join(pieces))
    assert crc == zlib.crc32(data)
    with h5py.File(io.BytesIO(data)) as file:
        assert file["activations"][()].tobytes() == (content.tobytes() if name is None else content)
        assert file["labels"][()].tobytes() == labels.tobytes()
        assert tuple(file.attrs["shape"]) == array.shape
        assert (int(file.attrs["batch"]), file.attrs["device"].decode()) == (number, device)
    read = hdf5.read(data)
    assert (read.form, read.device, read.batch, read.version) == (form, device, number, number // 3)
    for _ in range(2):  # the second time it is known
        parts, activations, back = hdf5_template.unpack(data)
        assert parts == read
        assert back.tobytes() == labels.tobytes()
        assert activations.tobytes() == (array if name is None else codec.decode(content, 10**6)).tobytes()
        assert activations.dtype.str == form.dtype
        assert activations.shape == array.shape
        assert activations.flags.writeable


def test_an_hdf5_that_lays_out_files_otherwise_is_refused(monkeypatch):
    """Rather than filled in at the wrong places."""
    build = hdf5.build
    form = hdf5_template.form_of(acts(0, (4, 3)), LABELS)
    for changed in (
        lambda made, parts: (made.replace(made[parts.activations - 40 :][:8], b"?" * 8), parts),
        lambda made, parts: (made, parts._replace(labels=parts.labels - 8)),
        lambda made, parts: (made.replace(hdf5_template._u64(hdf5_template._BATCH), bytes(8)), parts),
        lambda made, parts: (made + hdf5_template._DEVICE, parts._replace(activations=len(made) + 64)),
    ):
        monkeypatch.setattr(hdf5, "build", lambda *args, changed=changed: changed(*build(*args)))
        with pytest.raises(CacheError, match="install the h5py that"):
            hdf5_template._Template(form)
