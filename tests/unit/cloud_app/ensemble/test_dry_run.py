"""What the end of a run needs is tried before its first round; and a run whose export failed is exported later."""

import threading

import pytest
from ensembles import ended
from torch import nn

from cloud_app.ensemble import publish, run_archive
from cloud_app.run import finish, run
from cloud_app.serving.repository import Repository
from emo import cli
from emo.config import CloudConfig, Data
from emo.data import registry
from emo.data.dataset import Dataset
from emo.errors import EmoError, ExportError, ServeError
from emo.models import split_network
from emo.models.layers import Parts

pytestmark = pytest.mark.usefixtures("one_thread")


class Branching(nn.Linear):
    mended = False

    def forward(self, inputs):
        if not Branching.mended and float(self.bias.sum()) > 9:
            return -super().forward(inputs)
        return super().forward(inputs)


def branching(spec):
    return Parts(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU()),
        lambda: nn.Linear(16, spec.classes),
        lambda: Branching(16, spec.classes),
    )


def few(_spec):
    train, test = registry.load(Data())
    return Dataset(train.images[:40], train.labels[:40], train.classes, train.mean, train.std), test


def config(folder, **sections):
    values = {"state_dir": folder / "state", "overlays": {"edges": ["e"]}, **sections}
    values["export"] = {"models": folder / "models", **values.get("export", {})}
    (folder / "state").mkdir()
    return CloudConfig.model_validate(values)


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        (
            {"model": {"name": f"{__name__}:branching"}},
            r"could not be exported at the end: .*test_dry_run\.py, line \d+: if not",
        ),
        ({"data": {"name": f"{__name__}:few"}, "export": {"int8": True}}, "int8: 20 images to judge"),
        ({"export": {"models": "/proc/models"}}, "/proc/models: cannot be written"),
    ],
)
def test_it_is_said_before_the_first_round(tmp_path, sections, why):
    stop = threading.Event()
    stop.set()
    with pytest.raises(EmoError, match=why):
        run(config(tmp_path, **sections), stop)
    assert not (tmp_path / "state" / "result.json").exists()


def test_the_folders_of_models_are_tried_and_left_as_they_were(tmp_path):
    repository = Repository(tmp_path / "models")
    repository.try_writing("emo")
    assert list(tmp_path.iterdir()) == [tmp_path / "models"]
    (tmp_path / "models" / "emo").write_text("a file where the versions belong")
    with pytest.raises(ServeError, match=r"emo.*cannot be written: Not a directory"):
        repository.try_writing("emo")
    assert [each.name for each in (tmp_path / "models").iterdir()] == ["emo"]


def test_a_run_whose_export_failed_is_exported_once_it_is_mended(tmp_path, capsys, monkeypatch):
    model, always = {"name": f"{__name__}:branching"}, {"at_least": "none"}
    settings = config(tmp_path, model=model, export=always)
    spec, test = settings.model, registry.load(Data())[1]
    net, overlay = split_network.network(spec, 0), split_network.weights(split_network.overlay(spec, 0))
    state = ended(settings, "r", split_network.weights(net), {"e": overlay})
    with pytest.raises(ExportError) as failed:
        finish(settings, state, test, resumed=False)
    why, remedy = str(failed.value).splitlines()
    assert "cannot export" in why
    command = remedy[remedy.index("emo export") : remedy.index(" (or start the cloud again)")].split()
    monkeypatch.setattr(Branching, "mended", True)
    assert cli.main(command[1:]) == 0
    assert "version" not in capsys.readouterr().err
    assert Repository(settings.export.models).versions("emo") == [1]
    # The cloud, started again, finds it there.
    assert finish(settings, state, test, resumed=True)["version"] == 1


def test_a_temporary_folder_that_cannot_be_had_is_said(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(publish, "TemporaryDirectory", full)
    settings = config(tmp_path)
    weights = split_network.weights(split_network.network(settings.model, 0))
    overlay = split_network.weights(split_network.overlay(settings.model, 0))
    with pytest.raises(ExportError, match="/tmp/x: cannot be written: No space left on device"):
        finish(settings, ended(settings, "r", weights, {"e": overlay}), registry.load(Data())[1], resumed=False)
    assert run_archive.read(settings.state_dir)[0].run == "r"
