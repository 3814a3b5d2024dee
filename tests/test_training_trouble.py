"""What a run does about files it cannot read or write, and what it plots at its end."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathline.training import load_data
from pathline.training.trainer import Trainer
from support.training_runs import fresh_accelerate, losses, run, same, weights


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images of two classes, two of them cut off."""
    rng = np.random.default_rng(0)
    for number in range(24):
        place = tmp_path / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(place / f"{number:02d}.png")
    for name in ("a/04.png", "b/11.png"):
        file = tmp_path / "images" / name
        file.write_bytes(file.read_bytes()[:40])
    return tmp_path / "images"


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_images_are_named_or_skipped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr("pathline.training.readers._IN_MEMORY", 0)
    with pytest.raises(ValueError, match=r"a/04\.png cannot be read"):
        load_data(data_dir=folder).__getitems__(range(20))
    data = load_data(data_dir=folder, unreadable="skip", split="all")
    assert (len(data), [Path(name).name for name in data.skipped]) == (22, ["04.png", "11.png"])
    assert data.targets is not None
    assert data.targets.tolist() == [0] * 11 + [1] * 11
    run(tmp_path / "out", train_data_dir=str(folder), unreadable="skip", max_train_steps=2)
    said = capsys.readouterr().out
    assert "2 files were skipped, they cannot be read" in said
    assert "11.png" in said


def test_a_folder_of_nothing_readable_is_an_error(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 24 images in folder"):
        load_data(data_dir=folder, unreadable="skip")
    with pytest.raises(ValueError, match="unknown unreadable 'skp'; did you mean 'skip'"):
        load_data(data_dir=folder, unreadable="skp")


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for a disk that is full from step 4 on."""
    options: dict[str, Any] = {"checkpointing_steps": 2, "logging_steps": 1}
    whole = run(tmp_path / "whole", **options)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = Trainer.save_checkpoint

    def limited(self: Trainer) -> None:
        if self.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        original(self)

    monkeypatch.setattr(Trainer, "save_checkpoint", limited)
    try:
        with pytest.raises(OSError, match="checkpoint-4 cannot be written"):
            run(tmp_path / "full", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "full").iterdir() if "checkpoint" in path.name] == ["checkpoint-2"]
    again = run(tmp_path / "full", **options, resume_from_checkpoint="latest")
    assert same(weights(whole), weights(again))
    assert losses(whole) == losses(again)


def test_plots_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path / "out", plots=True)
    norms = json.loads((result / "plots" / "gradients.json").read_text())["gradient_norm_by_time"]
    assert len(norms) == 5
    assert min(norms) > 0
    assert len(set(norms)) == 5
    with Image.open(result / "plots" / "training.png") as image:
        assert image.size[0] > 800
    plain = run(tmp_path / "plain")
    assert not (plain / "plots").exists()
    assert same(weights(result), weights(plain))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    without = run(tmp_path / "without", plots=True, max_train_steps=1)
    assert "no plots were drawn: pip install" in capsys.readouterr().out
    assert [path.name for path in (without / "plots").iterdir()] == ["gradients.json"]
    assert torch.is_grad_enabled()
