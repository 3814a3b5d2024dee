"""A table, such as a fitted one, in the place of a scheduler's method."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)

from pathline.interpolants import DiscretePath, GaussianPath, VPPath
from pathline.samplers import Table, build_table, make_nodes
from pathline.samplers.fitted import described_fit
from pathline.samplers.schedulers import PathlineScheduler, UniPCScheduler
from pathline.training.conventions import training_betas
from support.schedulers import latents, make, network, steps_over

CONFIGS: dict[str, dict[str, Any]] = {"betas": {"prediction_type": "epsilon"}, "flow": {}}


def fitted(family: str, method: str = "unipc") -> Table:
    scheduler = make(family, method=method)
    path = scheduler._family.path
    table = build_table(method, make_nodes(path, [0.001 if family == "flow" else 0.0, 0.3, 0.6, 0.8, 1.0]))
    prediction = {"betas": "noise", "flow": "velocity"}[family]
    return replace(table, provenance=described_fit(path=path, prediction=prediction, guidance=None, calls=640))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_table_runs_on_its_own_levels_and_travels_with_the_config(family: str, tmp_path: Path) -> None:
    table = fitted(family)
    table.save(tmp_path / "fitted.json")
    scheduler = PathlineScheduler(**CONFIGS[family], pathline={"table": str(tmp_path / "fitted.json"), "seed": 1})
    (tmp_path / "fitted.json").unlink()  # the config holds the table
    scheduler.save_pretrained(tmp_path / "saved")
    json.loads((tmp_path / "saved" / "scheduler_config.json").read_text())
    again = PathlineScheduler.from_pretrained(tmp_path / "saved")
    given = PathlineScheduler(**CONFIGS[family], pathline={"grid": table.nodes["time"], "method": "unipc"})
    ends = []
    for each in (scheduler, again, given):
        each.set_timesteps(4)
        ends.append(steps_over(each, latents(), each.timesteps))
    assert again.table == table
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-12, atol=1e-12)
    for begin in (1, 3):
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(begin)
        assert torch.isfinite(steps_over(scheduler, latents(), scheduler.timesteps[begin:])).all()


def test_flow_pipelines_that_send_their_default_sigmas_get_the_levels_of_the_table() -> None:
    scheduler = PathlineScheduler(pathline={"table": fitted("flow").content()})
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.8)
    assert scheduler.sigmas.tolist() == pytest.approx([0.999, 0.7, 0.4, 0.2, 0.0])
    x = latents()
    assert torch.isfinite(scheduler.step(network(x, scheduler.timesteps[0]), scheduler.timesteps[0], x)[0]).all()


def test_array_coefficients_stay_in_their_file(tmp_path: Path) -> None:
    table = fitted("betas", "ddim")
    where = next(iter(table.coefficients()))[0]
    arrays = replace(table.with_coefficient(where, np.full((3, 4, 4), 0.5)), frame="none: fit")
    arrays.save(tmp_path / "arrays.safetensors")
    scheduler = PathlineScheduler(**CONFIGS["betas"], pathline={"table": str(tmp_path / "arrays.safetensors")})
    assert scheduler.config.pathline["table"].endswith("arrays.safetensors")
    scheduler.set_timesteps(4)
    assert torch.isfinite(steps_over(scheduler, latents(), scheduler.timesteps)).all()
    with pytest.raises(ValueError, match="array coefficients"):
        arrays.content()


def test_what_does_not_fit_is_refused_before_the_run(tmp_path: Path) -> None:
    content = fitted("betas").content()
    with pytest.raises(ValueError, match="was made for another path"):
        PathlineScheduler(pathline={"table": content}).set_timesteps(4)
    with pytest.raises(ValueError, match="a noise prediction, not v"):
        PathlineScheduler(prediction_type="v_prediction", pathline={"table": content}).set_timesteps(4)
    with pytest.raises(ValueError, match="num_inference_steps=4"):
        PathlineScheduler(**CONFIGS["betas"], pathline={"table": content}).set_timesteps(7)
    with pytest.raises(ValueError, match="leave out method"):
        PathlineScheduler(**CONFIGS["betas"], pathline={"table": content, "method": "ddim"})
    with pytest.raises(ValueError, match="not a readable pathline table"):
        PathlineScheduler(**CONFIGS["betas"], pathline={"table": {"rows": []}})
    with pytest.raises(FileNotFoundError):
        PathlineScheduler(**CONFIGS["betas"], pathline={"table": str(tmp_path / "missing.json")})


def trained_on(path: GaussianPath) -> Any:
    """The config of a network trained on this path, as `pathline train` writes it."""
    return DDPMScheduler(trained_betas=training_betas(path), clip_sample=False).config


@pytest.mark.parametrize(
    "path", [DiscretePath.linear(), DiscretePath.scaled_linear(), DiscretePath.cosine(), VPPath()], ids=lambda p: p.name
)
def test_a_table_of_exact_levels_runs_in_the_scheduler_of_its_network(path: GaussianPath) -> None:
    table = build_table("unipc", make_nodes(path, [0.0305, 0.3, 0.6, 0.889, 0.9405, 0.99499, 0.99804, 1.0]))
    scheduler = PathlineScheduler.from_config(trained_on(path), pathline={"table": table.content()})
    scheduler.set_timesteps(table.evaluations)
    others = [trained_on(DiscretePath.linear(beta_end=0.0201)), trained_on(DiscretePath.linear(2e-4))]
    for other in [*others, DDPMScheduler(beta_schedule="sigmoid").config]:
        with pytest.raises(ValueError, match="was made for another path"):
            PathlineScheduler.from_config(other, pathline={"table": table.content()}).set_timesteps(table.evaluations)


@pytest.mark.parametrize("stock", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler])
@pytest.mark.parametrize("ours", [PathlineScheduler, UniPCScheduler])
def test_a_table_takes_the_place_of_the_solver_of_a_stock_config(stock: Any, ours: Any) -> None:
    table = fitted("betas")
    config = stock(solver_order=3 if stock is not DEISMultistepScheduler else 2, beta_end=0.02).config
    scheduler = ours.from_config(config, pathline={"table": table.content()})
    scheduler.set_timesteps(4)
    assert scheduler.table == table
    with pytest.raises(ValueError, match="leave out options"):
        ours.from_config(config, pathline={"table": table.content(), "options": {"order": 2}})
