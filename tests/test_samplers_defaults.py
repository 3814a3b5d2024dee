"""What runs when nobody names a method."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from pathline.evals.defaults import default_error
from pathline.evals.defaults_page import MARKS, setting_text, table_text
from pathline.evals.peers import Bench, Setting
from pathline.evals.sources import open_source
from pathline.interpolants import CosinePath, DiscretePath, EDMPath, GaussianMixture, GaussianPath, LinearPath, VEPath
from pathline.samplers import ClassifierFree, Table, make_nodes, plan, sample
from pathline.samplers.defaults import GUIDED, default_settings, is_guided
from support.repository import ROOT

PATHS = (LinearPath(), DiscretePath.linear(1e-4, 0.02, 1000), EDMPath(), CosinePath(), VEPath())
EVIDENCE = json.loads((ROOT / "docs" / "defaults.json").read_text())


def levels(table: Table) -> np.ndarray:
    return np.array(table.nodes["noise"])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("prediction", [None, "data", "velocity"])
def test_every_budget_is_spent_and_kept(path: GaussianPath, prediction: str | None, guided: bool) -> None:
    for nfe in (1, 2, 3, 4, 5, 6, 7, 9, 10, 13, 18):
        table = plan(path, nfe=nfe, prediction=prediction, guided=guided)
        assert table.evaluations == nfe
        assert (np.diff(levels(table)) < 0).all()
        assert not table.stochastic


@pytest.mark.parametrize("prediction", ["data", "velocity"])
@pytest.mark.parametrize("scale", [None, 1.5, 7.5])
def test_sample_runs_the_rule_for_its_model(prediction: str, scale: float | None) -> None:
    path = LinearPath()
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], std=[0.2, 0.2], classes=[0, 1])
    labels = torch.tensor([0, 1, 1, 0])
    guidance = None if scale is None else ClassifierFree(scale, {"labels": torch.full((4,), -1)})
    common: dict[str, Any] = {
        "path": path,
        "prediction": prediction,
        "guidance": guidance,
        "model_kwargs": {"labels": labels},
        "nfe": 5,
    }
    x = path.prior((4, 2), torch.Generator().manual_seed(0))
    ours = sample(law.as_model(path, prediction), x, **common)
    chosen = default_settings(5, path, prediction=prediction, guided=scale == 7.5)
    named = sample(
        law.as_model(path, prediction),
        x,
        method=chosen.method,
        grid=chosen.grid,
        grid_options=chosen.grid_options,
        **chosen.options,
        **common,
    )
    assert torch.equal(torch.as_tensor(ours), torch.as_tensor(named))


def test_guided_means_a_scale_above_two_or_another_guidance() -> None:
    scales = [ClassifierFree(scale, {}) for scale in (1.0, GUIDED, GUIDED + 0.1)]
    assert [is_guided(guidance) for guidance in (None, *scales, lambda *a: a)] == [False, False, False, True, True]


def test_what_is_named_is_kept() -> None:
    path = LinearPath()
    assert np.array_equal(levels(plan(path, "ddim", nfe=4)), make_nodes(path, "logsnr", 4).noise)
    chosen = default_settings(4, path, analytic=False)
    assert "afs" not in chosen.options
    for given in ({"steps": 4}, {"grid": "karras", "nfe": 4}, {"grid": make_nodes(path, "time", 4)}):
        table = plan(path, **given)
        assert (table.method, table.evaluations) == (chosen.method, 4)
    assert np.array_equal(levels(plan(path, grid="karras", nfe=4)), make_nodes(path, "karras", 4).noise)
    assert plan(path, nfe=5, order=1).evaluations == 5


def test_a_cleaner_end_of_the_logsnr_grid_is_refused_where_there_is_none() -> None:
    path = LinearPath()
    assert make_nodes(path, "logsnr", 5, cleanest=0.05).lam[-2] == pytest.approx(-np.log(0.05))
    assert np.array_equal(make_nodes(path, "logsnr", 5, cleanest=1e-9).lam, make_nodes(path, "logsnr", 5).lam)
    for wrong in (0.0, -1.0, 1e3):
        with pytest.raises(ValueError, match="cleanest="):
            make_nodes(path, "logsnr", 5, cleanest=wrong)


def test_the_evidence_is_that_of_the_rule() -> None:
    for row in EVIDENCE:
        kind = {"prediction": row["prediction"], "guided": row["guidance"] > GUIDED}
        path = LinearPath() if row["flow"] else None
        assert setting_text(default_settings(row["nfe"], path, **kind)) == row["default"], row
    page = (ROOT / "docs" / "defaults.md").read_text()
    assert page.partition(MARKS[0])[2].partition(MARKS[1])[0].strip() == table_text(EVIDENCE)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_the_evidence_is_measured_again(guidance: float) -> None:
    bench = Bench(open_source("bed:digits:conditional=True"), guidance=guidance, samples=128, seed=3)
    rows = [row for row in EVIDENCE if (row["bed"], row["guidance"]) == ("digits-flow", guidance) and row["nfe"] <= 8]
    assert rows
    for row in rows:
        assert bench.error(Setting(*row["best"].split(" ")), row["nfe"]) == pytest.approx(row["error"], rel=0.02)
        assert default_error(bench, row["nfe"], guidance) == pytest.approx(row["default_error"], rel=0.02)
