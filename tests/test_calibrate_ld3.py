"""LD3: levels and labels learned through the sampler, the method's own coefficients kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import LinearPath
from pathline.samplers import build_table
from pathline.samplers.calibrate.ld3 import learn_levels
from pathline.samplers.calibrate.row_fits import make_reference, mean_error, nodes_of
from pathline.samplers.calibrate.student import Student, expand
from pathline.samplers.calibrate.trajectories import Problem
from pathline.samplers.frames import residuals
from support.calibration import six_problem, starts

PATH = LinearPath()


def levels_of(table: Any) -> list[Any]:
    return [row.level for row in table.rows if row.calls_network]


def test_levels_lower_the_error_and_keep_the_method() -> None:
    given, x = six_problem(PATH, 16), starts(PATH, 24)
    reference = make_reference(given, x, {})
    found = learn_levels(given, x, 4, labels=False, rounds=(3, 0), batch=4, grids=("logsnr",), reference=reference)
    assert found.holdout_error < 0.65 * found.base_error
    assert found.table.frame == "point_mass"
    assert residuals(found.table).max() < 1e-9
    levels = levels_of(found.table)
    nodes = nodes_of(given, np.array([level.lam for level in levels]))
    for row, exact in zip(expand(found.table), expand(build_table("unipc", nodes)), strict=True):
        np.testing.assert_allclose(row, exact, atol=1e-9)
    np.testing.assert_allclose([level.time for level in levels], nodes.time[:-1], atol=1e-12)
    held = given.part(slice(12, 24), 24)
    error = mean_error(held.run(found.table, x[12:]) - reference.end[12:])
    assert math.isclose(error, found.holdout_error, rel_tol=1e-9)


def test_labels_make_up_for_a_network_that_reads_its_own_wrongly() -> None:
    # on λ + 0.2 where it is told λ; the teacher is the same table with the right network, so that −0.2 is exact
    true, off = six_problem(PATH, 16), 0.2

    def data(x: Tensor, t: Tensor) -> Tensor:
        return x + (1 - t[:, None]) * true.model(x, t)

    def wrong(x: Tensor, t: Tensor) -> Tensor:
        return data(x, torch.where(t > 0, PATH.time_at(PATH.lam(t.clamp(min=1e-3)) + off), t))

    x = starts(PATH, 24)
    right, given = Problem(data, PATH, "data"), Problem(wrong, PATH, "data")
    taught = Student.make(right, 4, "ddim", {}, "logsnr").table
    reference = make_reference(true, x, {})
    reference = replace(reference, states=torch.cat([reference.states[:-1], right.run(taught, x)[None]]))
    settings: dict[str, Any] = {"method": "ddim", "grids": ("logsnr",), "rounds": (0, 8), "batch": 6, "radius": 0.0}
    with_labels, without = (
        learn_levels(given, x, 4, labels=labels, reference=reference, **settings) for labels in (True, False)
    )
    assert without.holdout_error > 0.35 * without.base_error
    assert with_labels.holdout_error < 0.15 * with_labels.base_error
    levels = levels_of(with_labels.table)[1:]
    told = [float(PATH.lam(torch.tensor(level.time, dtype=torch.float64))) - level.lam for level in levels]
    assert sum(told) < 0  # towards −off, less what the levels do
    assert levels_of(with_labels.table)[0].time == 0.0
    apart = np.diff([level.lam for level in levels]).min()
    assert max(abs(shift) for shift in told) <= 0.5 * apart + 1e-9


def test_no_rounds_give_the_base_and_few_levels_work() -> None:
    given, x = six_problem(PATH, 16), starts(PATH, 8)
    reference = make_reference(given, x, {})
    kept = learn_levels(given, x, 4, rounds=(0, 0), grids=("time",), reference=reference)
    assert kept.table.released() == Student.make(given, 4, "unipc", {}, "time").table
    assert kept.table.provenance["prediction"] == given.prediction
    one = learn_levels(given, x, 1, method="ddim", rounds=(1, 1), reference=reference)
    assert one.holdout_error == one.base_error


def test_starts_may_move_by_default_and_the_hold_out_never_does() -> None:
    given, x = six_problem(PATH, 16), starts(PATH, 12)
    reference = make_reference(given, x, {})
    calls = []
    for radius in (None, 0.0):
        found = learn_levels(
            given, x, 4, method="ipndm", radius=radius, rounds=(1, 0), grids=("time",), batch=6, reference=reference
        )
        calls.append(found.calls)
        held = given.part(slice(6, 12), 12)
        error = mean_error(held.run(found.table, x[6:]) - reference.end[6:])
        assert math.isclose(error, found.holdout_error, rel_tol=1e-9)
    assert calls[0] - calls[1] == 6 * 4  # one run more of every training sample


def test_bad_input_is_refused() -> None:
    given, x = six_problem(PATH, 16), starts(PATH, 8)
    with pytest.raises(ValueError, match="radius=-1"):
        learn_levels(given, x, 4, radius=-1.0)
    with pytest.raises(ValueError, match="rounds="):
        learn_levels(given, x, 4, rounds=(-1, 0))
    assert given.calls == 0
