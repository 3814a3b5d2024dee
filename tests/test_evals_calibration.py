"""`pathline calibrate` as a user runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pathline.evals.runners import start_state
from pathline.evals.sources import open_source
from pathline.samplers import Table, sample

Cli = Callable[..., Any]


def test_a_calibrated_table_is_saved_with_its_story_and_samples(pathline: Cli, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "table.json"
    code, said, _ = pathline("calibrate", "bed:mixture", "--nfe", "5", "--budget", "5000", "--out", str(out), "--quiet")
    assert code == 0
    assert "below the best untuned method" in said
    table = Table.load(out)
    fit = table.provenance
    assert table.evaluations == 5
    assert fit["calls"] <= 5000
    assert fit["holdout_error"] < 0.7 * fit["untuned_error"]
    assert {"network", "seed", "versions", "path", "prediction", "guidance", "chosen"} <= fit.keys()
    source = open_source("bed:mixture")
    x = start_state(source, 5, range(8), torch.float32)
    drawn = sample(source.model, x, path=source.path, prediction=source.prediction, method=out)
    assert torch.isfinite(drawn).all()
    with pytest.raises(ValueError, match="was fitted to"):
        sample(source.model, x, path=source.path, prediction="v", method=out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nfe", "5", "--budget", "100"), "a hold-out of"),
        (
            (
                "--nfe",
                "0",
            ),
            "--nfe 0",
        ),
        (("--nfe", "5", "--out", "table.txt"), "end in .json or .safetensors"),
        (("--nfe", "5", "--guidance", "3"), "guidance 3.0 needs"),
        (("--nfe", "5", "--samples", "3"), "hold_out=2 of 3"),
    ],
)
def test_what_cannot_be_calibrated_is_said_in_a_sentence(
    pathline: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, complaint = pathline("calibrate", "bed:gaussian", "--quiet", *arguments)
    assert code != 0
    assert message in complaint
    assert "Traceback" not in complaint
    assert not said
    assert not list(tmp_path.iterdir())
