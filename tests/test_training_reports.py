"""What a run sends elsewhere: numbers and pictures to trackers, the result to the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from accelerate import tracking

from pathline.training.cli import add_to
from pathline.training.hub import reserve_repository
from support.training_runs import TINY, fresh_accelerate, losses, run


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


class Writer:
    """Takes the place of tensorboard's."""

    def __init__(self) -> None:
        self.scalars: dict[int, dict[str, float]] = {}
        self.images: list[tuple[str, int, tuple[int, ...], str]] = []
        self.settings: dict[str, Any] = {}
        self.closed = False

    def add_hparams(self, values: dict[str, Any], metric_dict: dict[str, Any]) -> None:
        self.settings = values

    def add_scalar(self, key: str, value: float, global_step: int) -> None:
        self.scalars.setdefault(global_step, {})[key] = value

    def add_images(self, key: str, value: np.ndarray, global_step: int, dataformats: str) -> None:
        assert value.dtype == np.uint8
        self.images.append((key, global_step, value.shape, dataformats))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_trackers_get_losses_by_level_and_previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()

    class Tracker(tracking.TensorBoardTracker):
        def start(self) -> None:
            self.logging_dir, self.writer = str(tmp_path), writer

    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    settings: dict[str, Any] = {"logging_steps": 2, "preview_images": 4, "preview_steps": 4, "preview_nfe": 2}
    folder = run(tmp_path / "run", report_to="tensorboard", **settings)
    assert writer.settings["learning_rate"] == 0.003
    assert sorted(writer.scalars) == [2, 4, 6]
    assert [scalars["loss"] for scalars in writer.scalars.values()] == losses(folder)
    levels = {f"loss/level-{k}" for k in range(5)}
    assert levels | {"loss", "grad_norm", "learning_rate"} <= writer.scalars[6].keys()
    mean = sum(writer.scalars[6][key] for key in levels) / 5  # 16 stratified times: about as many on each level
    assert mean == pytest.approx(writer.scalars[6]["loss"], rel=0.1)
    assert [(key, step, form) for key, step, _, form in writer.images] == [
        ("preview", 4, "NHWC"),
        ("preview", 6, "NHWC"),
    ]
    assert writer.images[0][2] == (1, 140, 140, 3)  # two by two, each of 64 pixels, in borders of 4
    assert writer.closed


class Hub:
    """Takes the place of the hub; records what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: str = "") -> None:
        self.broken, self.calls = broken, [""][:0]
        self.uploads: list[dict[str, Any]] = []
        for name in ("whoami", "create_repo", "upload_folder"):
            monkeypatch.setattr(f"huggingface_hub.{name}", getattr(self, name))

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.broken:
            raise RuntimeError(f"{name} says no")

    def whoami(self) -> dict[str, str]:
        self._call("whoami")
        return {"name": "me"}

    def create_repo(self, name: str, exist_ok: bool) -> Any:
        self._call("create_repo")
        assert exist_ok
        return type("Url", (), {"repo_id": f"me/{name}"})

    def upload_folder(self, **options: Any) -> None:
        self._call("upload_folder")
        self.uploads.append(options)


def test_a_result_is_uploaded_without_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    folder = run(tmp_path / "small", push_to_hub=True, max_train_steps=1)
    assert hub.calls == ["whoami", "create_repo", "upload_folder"]
    ignored = [".*", "checkpoint-*/**", "logs/**", "ema_snapshots/**"]
    assert hub.uploads == [{"repo_id": "me/small", "folder_path": folder, "ignore_patterns": ignored}]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("whoami", "push_to_hub: the hub does not know you .*whoami says no.*HF_TOKEN"),
        ("create_repo", r"push_to_hub: repository 'mine' \(hub_model_id\) cannot be made: create_repo says no"),
    ],
)
def test_a_hub_that_cannot_be_used_is_found_out_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, words: str
) -> None:
    hub = Hub(monkeypatch, broken)
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", push_to_hub=True, hub_model_id="mine")
    assert hub.calls[-1] == broken
    assert not (tmp_path / "out").exists()


def test_without_a_token_the_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(ValueError, match="push_to_hub: the hub does not know you"):
        reserve_repository(tmp_path, None)


def test_a_failed_upload_leaves_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    Hub(monkeypatch, "upload_folder")
    config, folder = tmp_path / "options.json", tmp_path / "out"
    config.write_text(__import__("json").dumps({**TINY, "max_train_steps": 1, "output_dir": str(folder)}))
    done = CliRunner().invoke(add_to(typer.Typer()), ["--config", str(config), "--push_to_hub"])
    assert (done.exit_code, (folder / "unet").is_dir()) == (1, True)
    assert f"the result is saved in {folder}, but it could not be uploaded to me/out" in done.stderr
    assert "Traceback" not in done.stderr
