"""Bespoke non-stationary solvers: their coordinates, their start and what training gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pathline.interpolants import LinearPath, VPPath
from pathline.samplers import sample
from pathline.samplers.calibrate.bns import bespoke_solver, velocities
from pathline.samplers.calibrate.row_fits import make_reference
from pathline.samplers.calibrate.student import Student, expand
from support.calibration import bed_problem, six_problem, starts


def test_it_starts_as_euler_at_even_times() -> None:
    path = LinearPath()
    given, x = six_problem(path, 16), starts(path, 8)
    kept = bespoke_solver(given, x, 5, rounds=0, reference=make_reference(given, x, {}))
    euler = sample(given, x, path=path, prediction="velocity", method="euler", grid=np.linspace(0, 1, 6))
    torch.testing.assert_close(given.run(kept.table, x), euler, rtol=0, atol=1e-9)


@pytest.mark.parametrize("noise_scale", [1.0, 2.5])
def test_directions_are_those_of_the_start_and_of_velocities(noise_scale: float) -> None:
    # the last row in the authors' form: x̄ = a·x̄_0 + Σ b_j·u_j, with data at r = 1, where x̄ = x
    path = VPPath()
    given = bed_problem(path, 3)
    student = Student.make(given, 4, "ddim", {}, "logsnr")
    x = starts(path, 3)
    directions = velocities(student, [], noise_scale=noise_scale)
    delta = np.array([0.1, -0.2, 0.3, 0.05, 0.4])
    rows = expand(student.table)
    changed = student.with_rows(student.table, [*rows[:-1], rows[-1] + directions[-1] @ delta], {})
    wanted, state = given.run(student.table, x), x
    start = student.table.start
    wanted = wanted + delta[0] * noise_scale / (start.noise + noise_scale * start.signal) * x
    for i, level in enumerate(student.levels(student.table)):
        data = given.model(state, torch.full((3,), level.time, dtype=torch.float64))
        noise = (state - level.signal * data) / level.noise
        wanted = wanted + delta[1 + i] * (data - noise_scale * noise)
        after = [*student.levels(student.table), student.table.end][i + 1]
        state = after.signal * data + after.noise * noise
    torch.testing.assert_close(given.run(changed, x), wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["linear", "vp"])
def test_training_lowers_the_error(name: str) -> None:
    path = {"linear": LinearPath(), "vp": VPPath()}[name]
    given = six_problem(path, 16) if name == "linear" else bed_problem(path, 24)
    x = starts(path, 24)
    found = bespoke_solver(given, x, 4, rounds=4, batch=6, reference=make_reference(given, x, {}))
    assert found.holdout_error < 0.5 * found.base_error
    assert found.parameters == 4 + 14  # times; weights of rows 1 to 4


def test_the_midpoint_start_and_bad_input() -> None:
    path = LinearPath()
    given, x = six_problem(path, 16), starts(path, 8)
    reference = make_reference(given, x, {})
    kept = bespoke_solver(
        given, x, 5, method="runge-kutta", options={"tableau": "midpoint"}, rounds=0, reference=reference
    )
    assert kept.table.evaluations == 4
    with pytest.raises(ValueError, match="noise_scale=0"):
        bespoke_solver(given, x, 4, noise_scale=0.0)
    with pytest.raises(ValueError, match="NaN"):
        bespoke_solver(given, x, 4, reference=replace(reference, states=reference.states / 0.0 * 0.0))
