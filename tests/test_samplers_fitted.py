"""Tables in the place of a method, and what fitted ones refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pathline.interpolants import EDMPath, GaussianMixture, LinearPath, VPPath
from pathline.samplers import ClassifierFree, Table, build_table, make_nodes, plan, run, sample
from pathline.samplers.fitted import check_fit, described_fit

PATH = VPPath()
MODEL = GaussianMixture([0.4, 0.6], [[1.0, -1.0], [-0.5, 0.5]], 0.2).as_model(PATH, "noise")


def start() -> torch.Tensor:
    return PATH.prior((5, 2), torch.Generator().manual_seed(0), dtype=torch.float64)


def table(**fit: Any) -> Table:
    built = build_table("dpm++", make_nodes(PATH, "logsnr", 6), order=2)
    return replace(built, provenance=described_fit(path=PATH, prediction="noise", **fit)) if fit else built


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_table_and_its_file_stand_for_a_method(tmp_path: Path, suffix: str) -> None:
    made = table(guidance=None, samples=64, holdout_error=0.01, versions={"torch": "2"})
    made.save(tmp_path / f"fitted{suffix}")
    assert Table.load(tmp_path / f"fitted{suffix}") == made
    expected = run(made, MODEL, start(), prediction="noise")
    for method in (made, tmp_path / f"fitted{suffix}", str(tmp_path / f"fitted{suffix}")):
        assert torch.equal(sample(MODEL, start(), path=PATH, method=method, prediction="noise"), expected)
    assert plan(None, made) is made


@pytest.mark.parametrize(
    "extra", [{"nfe": 5}, {"steps": 4}, {"grid": "karras"}, {"grid_options": {"rho": 5.0}}, {"order": 2}]
)
def test_a_table_takes_no_sizes_and_options(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"leave out {next(iter(extra))}"):
        sample(MODEL, start(), path=PATH, method=table(), prediction="noise", **extra)


@pytest.mark.parametrize("path", [LinearPath(), EDMPath(), VPPath(beta_max=12.0)], ids=["linear", "edm", "vp"])
def test_levels_of_another_path_are_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="was made for another path"):
        sample(MODEL, start(), path=path, method=table(), prediction="noise")


def test_another_prediction_or_guidance_is_refused_unless_forced() -> None:
    guided = ClassifierFree(7.5, {})
    check_fit(table(guidance=guided), path=PATH, prediction="noise", guidance=ClassifierFree(7.5, {"y": 1}))
    check_fit(table(guidance=None), prediction="noise", guidance=ClassifierFree(1.0, {}))
    check_fit(table(guidance=guided))  # nothing is known about the network
    cases: list[tuple[Table, dict[str, Any], str]] = [
        (table(guidance=guided), {"guidance": None}, "guidance 7.5, not none"),
        (table(guidance=guided), {"guidance": ClassifierFree(3.0, {})}, "guidance 7.5, not 3"),
        (table(guidance=None), {"guidance": guided}, "guidance none, not 7.5"),
        (table(guidance=None), {"prediction": "velocity"}, "a noise prediction, not velocity"),
        (table(guidance=guided), {"prediction": "v", "guidance": None}, "not v and guidance 7.5, not none"),
    ]
    for fitted, use, message in cases:
        with pytest.raises(ValueError, match=message):
            check_fit(fitted, path=PATH, **use)
        check_fit(fitted.released(), path=PATH, **use)
    with pytest.raises(ValueError, match="a noise prediction, not data"):
        sample(MODEL, start(), path=PATH, method=table(guidance=None), prediction="data")
