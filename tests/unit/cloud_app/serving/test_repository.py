"""Triton's layout; a version is whole, and stays what it was."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_app.serving import repository as module
from cloud_app.serving.repository import Repository
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


@given(st.text() | st.sampled_from(["..", ".", "", "/etc", "a/b", "a\\b", "a\n", "a\0", ".adding-x", "x" * 65, "~"]))
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

    monkeypatch.setattr(module.shutil, "copyfile", full)
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


@pytest.fixture
def three(repository, onnx):
    for _ in range(3):
        repository.add("emo", onnx, LABELS, (1, 8, 8))
    return repository


def config(repository):
    return (repository.root / "emo" / "config.pbtxt").read_text()


def test_the_newest_is_current_until_one_is_promoted(three, onnx):
    before = config(three)
    assert (three.current("emo"), three.promoted("emo")) == (3, None)
    three.promote("emo", 2)
    assert config(three) == before + "version_policy: { specific { versions: [ 2 ] } }\n"
    assert three.add("emo", onnx, LABELS, (1, 8, 8)) == 4
    assert (three.current("emo"), three.promoted("emo"), three.latest("emo")) == (2, 2, 4)
    three.promote("emo", None)
    assert config(three) == before
    assert three.current("emo") == 4


def test_rollback_goes_back_one_version_at_a_time(three):
    assert [three.rollback("emo"), three.rollback("emo")] == [2, 1]
    assert three.current("emo") == 1
    with pytest.raises(ServeError, match="no version before 1"):
        three.rollback("emo")


def test_prune_keeps_the_newest_and_the_current_one(three, onnx):
    three.promote("emo", 1)
    assert three.prune("emo", 1) == [2]
    assert three.versions("emo") == [1, 3]
    three.promote("emo", None)
    assert three.prune("emo", 5) == []
    assert three.prune("emo", 1) == [1]
    assert three.add("emo", onnx, LABELS, (1, 8, 8)) == 4  # a number is not used twice
    with pytest.raises(ServeError, match="at least one"):
        three.prune("emo", 0)
    assert not list(three.root.rglob(".adding-*"))


@pytest.mark.parametrize(
    ("policy", "promoted"),
    [
        ("version_policy: { specific { versions: [ 1, 2 ] } }", 2),
        ("version_policy {\n  specific: {\n    versions: [2]\n  }\n}", 2),
        ("version_policy { specific { versions: 1 } }", 1),
        ("version_policy: { latest { num_versions: 2 } }", None),
        ("version_policy: { all { } }", None),
        ("version_policy: { }", None),
    ],
)
def test_policies_that_others_wrote_are_understood_and_replaced(three, onnx, policy, promoted):
    before = config(three)
    file = three.root / "emo" / "config.pbtxt"
    file.write_text(before.replace("dynamic_batching", policy + "\ndynamic_batching"))
    assert three.promoted("emo") == promoted
    assert three.add("emo", onnx, LABELS, (1, 8, 8)) == 4
    three.promote("emo", 3)
    assert config(three) == before + "version_policy: { specific { versions: [ 3 ] } }\n"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "\n" * 100_000,
        " " * 100_000 + "version_policy",
        "version_policy {" * 7_000,
        "version_policy { specific { versions: [" + "1, " * 40_000,
        '"' * 100_000,
        "#" * 100_000,
        "}" * 100_000,
        "version_policy\n:\n" * 7_000,
    ],
)
def test_a_configuration_is_read_in_time_that_goes_with_its_size(three, text):
    file = three.root / "emo" / "config.pbtxt"
    file.write_text(text)
    assert three.current("emo") == 3
    file.write_text(text + "\n" + text)
    assert three.current("emo") == 3


@pytest.mark.parametrize(
    ("text", "promoted"),
    [
        ("# version_policy: { specific { versions: [ 1 ] } }", None),
        ('parameters { key: "version_policy: { specific { versions: 1 } }" }', None),
        ("model_warmup { version_policy { specific { versions: 1 } } }", None),
        ("version_policy: { # now 1\n specific: { versions: 2 } }", 2),
        ("version_policy: < specific < versions: 1 versions: 2 > >", 2),
    ],
)
def test_a_policy_is_one_only_where_triton_reads_one(three, text, promoted):
    before = config(three)
    (three.root / "emo" / "config.pbtxt").write_text(f"{before}{text}\n")
    assert three.promoted("emo") == promoted
    three.promote("emo", None)
    assert config(three) == (before if promoted else f"{before}{text}\n")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["config.pbtxt", "labels.txt", "1/selftest.json", "1/model.onnx"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_is_not_read(three, name, kind):
    path = three.root / "emo" / name
    path.unlink(missing_ok=True)
    {"fifo": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}[kind]()
    read = {
        "config.pbtxt": lambda: three.current("emo"),
        "labels.txt": lambda: three.labels("emo"),
        "1/selftest.json": lambda: three.selftest("emo", 1),
        "1/model.onnx": lambda: three.model("emo", 1),
    }[name]
    with pytest.raises(ServeError):
        read()


def test_a_folder_of_too_many_entries_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_ENTRIES", 3)
    for number in range(4):
        (tmp_path / f"{number}").touch()
    with pytest.raises(ServeError, match="over 3 entries"):
        Repository(tmp_path).names()


def test_a_version_that_is_not_there_cannot_be_promoted(three):
    with pytest.raises(ServeError, match="no version 9"):
        three.promote("emo", 9)
    for call in (three.promote, three.prune):
        with pytest.raises(ServeError, match="no model 'other'"):
            call("other", None if call == three.promote else 1)
    (three.root / "emo" / "config.pbtxt").write_text("version_policy: { specific { versions: [ 9 ] } }\n")
    with pytest.raises(ServeError, match=r"asks for version 9.*emo models promote"):
        three.current("emo")
    three.promote("emo", 1)
    assert three.current("emo") == 1


def test_a_failed_promotion_changes_nothing(three, monkeypatch):
    before = config(three)
    monkeypatch.setattr(module, "_sync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ServeError, match="No space left"):
        three.promote("emo", 1)
    assert config(three) == before
    assert sorted(each.name for each in (three.root / "emo").iterdir()) == [
        "1",
        "2",
        "3",
        "config.pbtxt",
        "labels.txt",
    ]


def test_a_self_test_lies_beside_its_version(repository, onnx):
    repository.add("emo", onnx, LABELS, (1, 8, 8), selftest="{}")
    repository.add("emo", onnx, LABELS, (1, 8, 8))
    assert (repository.selftest("emo", 1), repository.selftest("emo", 2)) == ("{}", None)
    (repository.root / "emo" / "1" / "selftest.json").write_bytes(bytes(module._MAX_TEXT + 1))
    with pytest.raises(ServeError, match="is over"):
        repository.selftest("emo", 1)
