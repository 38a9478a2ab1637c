"""Triton's layout; a version is whole, and stays what it was."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_app import repository as module
from cloud_app.repository import Repository
from emo.errors import ServeError

LABELS = ("cat", "dog")


@pytest.fixture
def onnx(tmp_path):
    path = tmp_path / "in.onnx"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "deep" / "models")


def test_an_empty_repository(repository):
    assert repository.names() == []
    assert repository.versions("emo") == []
    with pytest.raises(ServeError, match="no model 'emo'"):
        repository.latest("emo")


def test_versions_count_up_and_keep_their_content(repository, onnx):
    assert repository.add("emo", onnx, LABELS, (3, 32, 32)) == 1
    onnx.write_bytes(b"two")
    assert repository.add("emo", onnx, LABELS, (3, 32, 32)) == 2
    assert repository.names() == ["emo"]
    assert repository.versions("emo") == [1, 2]
    assert repository.latest("emo") == 2
    assert repository.path("emo", 1).read_bytes() == b"one"
    assert repository.path("emo", 2).read_bytes() == b"two"
    assert repository.labels("emo") == LABELS


def test_the_layout_is_tritons(repository, onnx):
    repository.add("emo", onnx, LABELS, (3, 32, 16), "float32")
    folder = repository.root / "emo"
    assert sorted(str(each.relative_to(folder)) for each in folder.rglob("*")) == [
        "1",
        "1/model.onnx",
        "config.pbtxt",
        "labels.txt",
    ]
    assert (folder / "labels.txt").read_text() == "cat\ndog\n"
    assert (
        (folder / "config.pbtxt").read_text()
        == """name: "emo"
backend: "onnxruntime"
max_batch_size: 64
input [
  { name: "images" data_type: TYPE_FP32 dims: [ 3, 32, 16 ] }
]
output [
  { name: "logits" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" },
  { name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" }
]
dynamic_batching { }
"""
    )


def test_the_tenth_version_is_newer_than_the_ninth(repository, onnx):
    for _ in range(10):
        last = repository.add("emo", onnx, LABELS, (1, 8, 8))
    assert last == repository.latest("emo") == 10


@pytest.mark.parametrize(
    ("labels", "shape", "dtype"),
    [(("cat", "cow"), (1, 8, 8), "uint8"), (LABELS, (3, 8, 8), "uint8"), (LABELS, (1, 8, 8), "float32")],
)
def test_a_model_of_another_kind_needs_another_name(repository, onnx, labels, shape, dtype):
    repository.add("emo", onnx, LABELS, (1, 8, 8))
    repository.check("emo", LABELS, (1, 8, 8))
    for call in (repository.check, lambda name, *rest: repository.add(name, onnx, *rest)):
        with pytest.raises(ServeError, match="choose another name"):
            call("emo", labels, shape, dtype)
    assert repository.versions("emo") == [1]
    assert repository.add("other", onnx, labels, shape, dtype) == 1


@pytest.mark.parametrize(
    ("labels", "shape", "dtype"),
    [
        (("cat",), (1, 8, 8), "uint8"),
        (("cat", ""), (1, 8, 8), "uint8"),
        (("cat", "a\nb"), (1, 8, 8), "uint8"),
        (("cat", "a\u2028b"), (1, 8, 8), "uint8"),
        (LABELS, (), "uint8"),
        (LABELS, (1, 0, 8), "uint8"),
        (LABELS, (1, 8, 8), "int64"),
    ],
)
def test_what_cannot_be_described_is_refused(repository, onnx, labels, shape, dtype):
    with pytest.raises(ServeError, match="model 'emo'"):
        repository.add("emo", onnx, labels, shape, dtype)
    assert repository.names() == []


@given(
    st.text()
    | st.sampled_from(["..", ".", "", "/etc", "a/b", "a\\b", "a\n", "a\0", ".adding-x", "x" * 65, "~"])
)
def test_a_name_is_an_id_or_is_refused(tmp_path_factory, name):
    repository = Repository(tmp_path_factory.getbasetemp() / "nowhere")
    plain = name.isascii() and name.replace("-", "a").replace(".", "a").replace("_", "a").isalnum()
    if plain and name[0].isalnum() and len(name) <= 64:
        assert repository.versions(name) == []
    else:
        for call in (repository.versions, repository.latest, repository.labels):
            with pytest.raises(ServeError, match="is no model name"):
                call(name)


def test_an_unknown_version_is_named(repository, onnx):
    repository.add("emo", onnx, LABELS, (1, 8, 8))
    for version in (0, 2, -1):
        with pytest.raises(ServeError, match=f"no version {version}"):
            repository.path("emo", version)


def test_foreign_folders_and_leftovers_are_no_models(repository, onnx):
    repository.add("emo", onnx, LABELS, (1, 8, 8))
    for folder in (".adding-dead/1", "empty", "emo/.adding-dead", "emo/latest", "emo/03", "emo/7"):
        (repository.root / folder).mkdir(parents=True)
    (repository.root / ".adding-dead" / "1" / "model.onnx").write_bytes(b"half")
    (repository.root / "emo" / "03" / "model.onnx").write_bytes(b"foreign")
    (repository.root / "README").write_text("a file")
    assert repository.names() == ["emo"]
    assert repository.versions("emo") == [1]
    # Folder 7 has no model, but the number is taken.
    assert repository.add("emo", onnx, LABELS, (1, 8, 8)) == 8


@pytest.mark.parametrize("already", [0, 1])
def test_a_failed_copy_leaves_no_trace(repository, onnx, monkeypatch, already):
    for _ in range(already):
        repository.add("emo", onnx, LABELS, (1, 8, 8))

    def full(_, to):
        to.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(ServeError, match="No space left"):
        repository.add("emo", onnx, LABELS, (1, 8, 8))
    assert repository.versions("emo") == [1] * already
    assert not list(repository.root.rglob(".adding-*"))


def test_a_missing_onnx_file_is_named(repository, tmp_path):
    with pytest.raises(ServeError, match=r"none\.onnx"):
        repository.add("emo", tmp_path / "none.onnx", LABELS, (1, 8, 8))
    assert repository.names() == []


def test_adding_at_the_same_time_gives_each_its_own_version(repository, tmp_path):
    found = {}
    start = threading.Barrier(8)

    def add(i):
        path = tmp_path / f"{i}.onnx"
        path.write_bytes(b"%d" % i)
        start.wait()
        found[i] = repository.add("emo", path, LABELS, (1, 8, 8))

    threads = [threading.Thread(target=add, args=(i,)) for i in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(found.values()) == list(range(1, 9))
    assert all(repository.path("emo", version).read_bytes() == b"%d" % i for i, version in found.items())
