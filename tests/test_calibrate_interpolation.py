"""Tables for guidance scales and numbers of calls between those that were fitted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from pathline.interpolants import LinearPath
from pathline.samplers import Table, build_table, make_nodes
from pathline.samplers.calibrate.extractor import KEY, fitted_features
from pathline.samplers.calibrate.interpolation import interpolate_tables, judged_interpolation
from pathline.samplers.calibrate.learned import learn_rows
from pathline.samplers.calibrate.row_fits import fit_rows, make_reference
from pathline.samplers.calibrate.trajectories import BudgetError, mean_error
from pathline.samplers.calibrate.triangular import triangular
from pathline.samplers.fitted import described_fit
from support.calibration import bed_problem, starts

PATH = LinearPath()


def fitted(nfe: int, guidance: float = 0.0) -> Table:
    problem = bed_problem(PATH, 48, guidance)
    base = triangular(build_table("ipndm", make_nodes(PATH, "karras", nfe), order=2))
    with torch.no_grad():
        rows, _ = fit_rows(make_reference(problem, starts(PATH, 48), {}), base, 1e-3)
    facts = described_fit(path=PATH, prediction="data", guidance=problem.guidance)
    return replace(rows.to_table(), provenance=facts)


def told(table: Table, **facts: Any) -> Table:
    return replace(table, provenance={**table.provenance, **facts})


@pytest.fixture(scope="module")
def by_guidance() -> list[Table]:
    return [fitted(4, scale) for scale in (1.5, 2.5, 3.5)]


@pytest.fixture(scope="module")
def by_calls() -> list[Table]:
    return [fitted(nfe) for nfe in (4, 6)]


def test_a_fitted_table_comes_back_at_its_own_place(by_guidance: list[Table], by_calls: list[Table]) -> None:
    again = interpolate_tables(PATH, by_guidance, guidance=2.5)
    np.testing.assert_allclose(again.nodes["noise"], by_guidance[1].nodes["noise"], atol=1e-9)
    ours, theirs = (np.array([float(c) for _, c in t.coefficients()]) for t in (again, by_guidance[1]))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    again = interpolate_tables(PATH, by_calls, nfe=6)
    theirs = np.array([float(c) for _, c in by_calls[1].coefficients()])
    np.testing.assert_allclose([float(c) for _, c in again.coefficients()], theirs, atol=1e-6)


def test_another_guidance_is_better_served_than_by_the_base(by_guidance: list[Table]) -> None:
    problem = bed_problem(PATH, 64, 3.0)
    found = judged_interpolation(problem, starts(PATH, 64, seed=7), by_guidance, guidance=3.0)
    assert found.holdout_error < 0.7 * found.base_error
    assert found.calls == problem.calls
    assert found.table.provenance["guidance"] == 3.0
    assert [m["guidance"] for m in found.table.provenance["interpolated_from"]] == [1.5, 2.5, 3.5]


def test_the_extractor_of_a_table_is_not_forgotten(by_calls: list[Table]) -> None:
    found = interpolate_tables(PATH, [by_calls[0], told(by_calls[1], **{KEY: {"name": "vgg"}})], nfe=5)
    assert fitted_features(found) == fitted_features(found.released()) == "vgg"


def test_learned_rows_say_their_scales_themselves() -> None:
    tables = []
    for scale in (1.5, 3.5):
        problem, x = bed_problem(PATH, 12, scale), starts(PATH, 12)
        tables.append(learn_rows(problem, x, 4, grids=["karras"], rounds=0).table)
    found = interpolate_tables(PATH, tables, guidance=2.0)
    assert [m["guidance"] for m in found.provenance["interpolated_from"]] == [1.5, 3.5]
    assert found.provenance["prediction"] == "data"


def test_what_loses_on_the_hold_out_is_not_returned(by_calls: list[Table]) -> None:
    problem, x = bed_problem(PATH, 64), starts(PATH, 64, seed=7)
    found = judged_interpolation(problem, x, by_calls, nfe=5)
    assert found.table.evaluations == 5
    assert found.holdout_error <= found.base_error
    end = make_reference(problem, x, {}).end
    assert abs(mean_error(problem.run(found.table, x) - end) - found.holdout_error) < 1e-9


def test_compensation_ratios_go_through_the_regression() -> None:
    tables = [
        build_table("dc-solver", make_nodes(PATH, "logsnr", n), ratios=[1.0, 1.0, *np.linspace(0.8, 1.2, n)[2:]])
        for n in (5, 7)
    ]
    table = interpolate_tables(PATH, tables, nfe=6, guidances=[2.0, 2.0])
    assert (table.method, table.evaluations) == ("dc-solver", 6)
    ratios = table.options["ratios"]
    assert ratios[:2] == [1.0, 1.0]
    assert abs(ratios[-1] - 1.2) < 0.05
    assert all(b > a for a, b in pairwise(ratios[2:]))


def test_what_cannot_be_interpolated_is_refused(by_guidance: list[Table], by_calls: list[Table]) -> None:
    other = build_table("dpm++", make_nodes(PATH, "karras", 4))
    for tables, asked, message in (
        (by_guidance, {"guidance": 5.0}, "guidance=5.0 is too far outside"),
        (by_calls, {"nfe": 8}, "nfe=8 is outside"),
        (by_calls, {}, "give one of nfe"),
        (by_calls, {"nfe": 5, "guidance": 2.0}, "give one of nfe"),
        (by_calls[:1], {"nfe": 4}, "at least 2"),
        ([by_guidance[0], other], {"guidance": 2.0}, "different bases.*fit them all with learn_rows"),
        ([by_guidance[0], replace(other, basis="cosine")], {"guidance": 2.0}, "groups of coordinates.*learn_rows"),
        (by_calls, {"guidance": 2.0}, "guidance scales"),
        (by_calls, {"guidance": 2.0, "guidances": [1.0, 3.0]}, "one number is needed"),
        (by_guidance, {"nfe": 4}, "different numbers of calls"),
        (by_guidance, {"guidance": 2.0, "guidances": [1.0]}, "3 finite scales"),
        (by_calls, {"nfe": 5, "share": 2.0}, "share=2.0"),
        ([by_calls[0], told(by_calls[1], prediction="noise")], {"nfe": 5}, "another prediction each, data and noise"),
        ([told(t, network=str(i)) for i, t in enumerate(by_calls)], {"nfe": 5}, "another network each, 0 and 1"),
        ([told(t, **{KEY: {"name": f"n{i}"}}) for i, t in enumerate(by_calls)], {"nfe": 5}, "feature spaces n0 and n1"),
    ):
        with pytest.raises(ValueError, match=message):
            interpolate_tables(PATH, tables, **asked)  # type: ignore[arg-type]
    poor = bed_problem(PATH, 8, 3.0, budget=100)
    with pytest.raises(BudgetError, match="judging tables"):
        judged_interpolation(poor, starts(PATH, 8), by_guidance, guidance=3.0)
    assert poor.calls == 0
