"""Networks that restore images: measured on test images, refused where samples from noise are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pathline.evals import open_source
from pathline.evals.restoration import main, restore
from pathline.training import load_pipeline
from support.training_runs import fresh_accelerate, run

KINDS: dict[str, dict[str, Any]] = {
    "bridge": {"objective": "bridge", "path": "brownian", "prediction": "data"},
    "interpolant": {"objective": "interpolant", "path": "linear", "image_start": True},
}


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    options = {"image_condition": "inpainting", "image_condition_config": {"tiles": 4, "hidden": 0.3}}
    with fresh_accelerate():
        yield run(tmp_path_factory.mktemp(request.param) / "run", max_train_steps=2, **options, **KINDS[request.param])


def test_an_image_is_restored_the_same_in_any_company(folder: Path) -> None:
    loaded = load_pipeline(folder)
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    together, alone = restore(loaded, images, 4), restore(loaded, images[:1], 4)
    torch.testing.assert_close(together.made[:1], alone.made, rtol=0, atol=1e-5)
    assert torch.equal(together.seen[:1], alone.seen)
    seen, _ = together.errors
    assert 0 < seen < 2


def test_errors_and_a_picture_are_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder), "--nfe", "2,4", "--images", "8", "--out", str(tmp_path / "sheet.png")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["seen", "2", "4"]
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_they_are_no_sources_of_samples(folder: Path) -> None:
    with pytest.raises(ValueError, match="restores degraded images"):
        open_source(str(folder))


def test_other_networks_see_no_image(tmp_path: Path) -> None:
    with fresh_accelerate():
        plain = run(tmp_path / "plain", max_train_steps=1)
    with pytest.raises(ValueError, match="train it with image_condition"):
        restore(load_pipeline(plain), torch.zeros(1, 1, 8, 8), 2)
