"""Align Your Steps: the bound against its closed form, the levels it gives, budgets and resuming."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pathline.evals.testbeds import make_bed
from pathline.interpolants import Gaussian, VPPath
from pathline.samplers import plan
from pathline.samplers.calibrate import ays
from pathline.samplers.calibrate.ays import Aligned, align_steps
from pathline.samplers.calibrate.row_fits import mean_error
from pathline.samplers.calibrate.trajectories import BudgetError, Problem, reference_states
from pathline.samplers.grids import make_nodes
from support.calibration import bed_problem, starts

SPREAD = 0.5
PATH = VPPath()


def bound(lams: list[float], last: float) -> float:
    """Of isotropic Gaussian data: E‖D_k − D_i‖² is the difference of the variances of D, a martingale in λ."""

    def explained(lam: np.ndarray) -> np.ndarray:
        return SPREAD**4 / (SPREAD**2 + np.exp(-2 * lam))

    total = 0.0
    for a, b in itertools.pairwise([*lams, last]):
        fine = np.linspace(a, b, 400)
        total += float(np.trapezoid(np.exp(2 * fine) * (explained(fine) - explained(np.array(a))), fine))
    return total


def aligned(count: int = 200, steps: int = 4) -> Aligned:
    data = Gaussian(torch.zeros(8, dtype=torch.float64), variance=SPREAD**2)
    given = Problem(data.as_model(PATH, "noise"), PATH, "noise")
    x = starts(PATH, count, 8)
    clean = SPREAD * torch.randn(count - 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return align_steps(given, x, steps, method="ddim", data=clean, holdout=8, levels=80, tails=(1.5,), chunk=96)


def test_the_bound_is_that_of_the_closed_form() -> None:
    found = aligned()
    lams = [float(v) for v in found.nodes.lam[:-1]]
    fine = make_nodes(PATH, "logsnr", 80).lam[:-1]
    last = float(fine[fine <= PATH.lambda_max - 1.5].max())
    assert math.isclose(found.bound, bound(lams, last), rel_tol=0.05)
    for k, move in itertools.product(range(1, len(lams)), (-0.4, 0.4)):
        moved = [*lams[:k], lams[k] + move, *lams[k + 1 :]]
        assert bound(moved, last) > found.bound * 0.97
    assert found.bound < found.base_bound


def test_levels_lower_the_error_of_first_order_steps() -> None:
    bed = make_bed("mixture")
    given = Problem(
        bed.target.as_model(PATH, "noise"), PATH, "noise", model_kwargs={"labels": torch.arange(32) % bed.classes}
    )
    x = PATH.prior((32, 2, 4, 4), torch.Generator().manual_seed(1)).double()
    found = align_steps(given, x, 5, method="ddim")
    assert found.holdout_error < 0.8 * found.base_error
    assert found.calls == given.calls
    held = given.part(slice(24, 32), 32)
    end = reference_states(held, x[24:], make_nodes(PATH, "logsnr", 1), per_step=48)[-1]
    assert math.isclose(mean_error(held.run(found.table, x[24:]) - end), found.holdout_error, rel_tol=1e-6)
    assert plan(PATH, "ddim", grid=found.nodes).rows == found.table.rows


def test_an_interrupted_estimate_goes_on(tmp_path: Path) -> None:
    file, x = tmp_path / "ays.npz", starts(PATH, 12)

    made = 0

    def run(budget: int | None, checkpoint: Path | None) -> Aligned:
        nonlocal made
        whole = bed_problem(PATH, 12)
        made = 0

        def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal made
            made += len(x)
            return whole.model(x, t)

        given = replace(whole, model=model, budget=budget)
        return align_steps(given, x, 3, method="ddim", levels=20, chunk=3, checkpoint=checkpoint)

    whole = run(None, None)
    part = run(800, file)
    assert any("budget paid for the levels of" in note for note in part.notes)
    assert part.calls <= 800
    rest = run(None, file)
    assert math.isclose(rest.bound, whole.bound, rel_tol=1e-12)
    assert (rest.holdout_error, rest.table.rows) == (whole.holdout_error, whole.table.rows)
    assert rest.calls == whole.calls
    assert made < whole.calls - 400
    with pytest.raises(ValueError, match="belongs to other starts"):
        align_steps(bed_problem(PATH, 12), x, 3, levels=20, seed=5, checkpoint=file)
    file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read"):
        run(None, file)


def test_a_base_that_is_kept_says_what_it_was_judged_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ays, "shortest_path", lambda costs, steps: (*range(steps), len(costs) - 1))  # of no use
    found = align_steps(bed_problem(PATH, 12), starts(PATH, 12), 3, method="ddim", levels=20)
    assert found.holdout_error == found.base_error
    assert found.table.provenance["path"] == repr(PATH)
    assert any("did not beat the base" in note for note in found.table.provenance["notes"])


def test_bad_input_is_refused_before_any_call() -> None:
    x = starts(PATH, 8)
    poor = bed_problem(PATH, 8, budget=100)
    with pytest.raises(BudgetError, match="8 converged ends"):
        align_steps(poor, x, 4)
    for message, options in (
        ("levels=4", {"levels": 4}),
        ("tails=", {"tails": ()}),
        ("ends of shape", {"ends": x[:3]}),
        ("data of shape", {"data": x[:6] * torch.nan}),
        ("deterministic", {"method": "ddpm"}),
    ):
        with pytest.raises(ValueError, match=message):
            align_steps(poor, x, 4, **options)  # type: ignore[arg-type]
    assert poor.calls == 0
