"""Dynamic compensation as a table transform, and the search of its ratios."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, GaussianMixture, GaussianPath, LinearPath, VPPath
from pathline.samplers import (
    Hook,
    RunState,
    Table,
    build_table,
    make_nodes,
    method_info,
    residuals,
    run,
)
from pathline.samplers.calibrate.compensation import CompensationFit, search_ratios
from pathline.samplers.calibrate.trajectories import BudgetError, Problem, mean_error, reference_states
from pathline.samplers.compensation import compensated, corrector_updates
from support.calibration import BED, bed_problem, starts
from support.golden_options import FOLDER, compensation_options
from support.goldens import data_prediction, golden_nodes, index, mixture
from support.problems import PATH, uniform_nodes

ONE_CALL = ["ddim", "dpm++", "dpm", "unipc", "exp-adams", "ipndm", "lms", "deis", "euler", "er-sde", "dpm++-sde", "sa"]


@pytest.mark.parametrize("method", ONE_CALL)
@pytest.mark.parametrize("path", [VPPath(), LinearPath()], ids=lambda p: p.name)
def test_any_method_of_one_call_per_step_keeps_its_frame(method: str, path: GaussianPath) -> None:
    order = 1 + ONE_CALL.index(method) % 3
    nodes = make_nodes(path, "logsnr", 7)
    plain = build_table(method, nodes)
    table = compensated(plain, 1.2, order=order)
    assert table.evaluations == plain.evaluations
    assert table.frame == plain.frame
    assert residuals(table).max() < 1e-9
    assert compensated(plain, 1.0, order=order) is plain
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = GaussianMixture([0.5, 0.5], [[-1.0] * 3, [1.0] * 3], std=[0.2, 0.3]).as_model(path)
    assert not torch.allclose(run(table, model, x), run(plain, model, x), atol=1e-4)  # type: ignore[arg-type]


def test_the_stored_output_is_the_polynomial_at_the_shifted_time() -> None:
    nodes = uniform_nodes("lam", 5)
    ratios = [1.0, 1.0, 1.3, 0.8, 1.1]
    table = compensated(build_table("ddim", nodes), ratios)
    t, times = nodes.time, torch.tensor(nodes.time)

    def model(x: Tensor, label: Tensor) -> Tensor:
        return x * 0 + label[:, None] ** 2  # of degree 2 in time: interpolation is exact while the history is raw

    x = torch.ones(1, 1, dtype=torch.float64)
    stored = [float(times[i] ** 2) for i in range(5)]
    for i in (2, 3, 4):
        at, seen = ratios[i] * t[i] + (1 - ratios[i]) * t[i - 1], t[i - 2 : i + 1]
        stored[i] = float(np.polyval(np.polyfit(seen, stored[i - 2 : i + 1], 2), at))
    assert stored[2] == pytest.approx((1.3 * t[2] - 0.3 * t[1]) ** 2)
    for i, value in enumerate(stored):
        carry = nodes.noise[i + 1] / nodes.noise[i]
        x = carry * x + (nodes.signal[i + 1] - carry * nodes.signal[i]) * value
    torch.testing.assert_close(run(table, model, torch.ones(1, 1, dtype=torch.float64)), x, rtol=0, atol=1e-12)


def test_correctors_use_the_raw_new_output_and_the_moved_older_ones() -> None:
    plain = build_table("unipc", make_nodes(PATH, "logsnr", 6), order=2)
    table = compensated(plain, 1.2)
    counts = corrector_updates(plain)
    assert counts == [0, 1, 1, 1, 1, 0]
    for i, row in enumerate(table.rows):
        own, before = row.output, table.rows[i - 1].output
        read = {v for v, _ in row.updates[0].terms} if counts[i] else set()
        assert (own in read) == bool(counts[i])
        assert before not in read or i < 3  # moved from the third step on
        moved = i >= 2
        assert len(row.updates) == len(plain.rows[i].updates) + moved
        assert not moved or own not in {v for u in row.updates[counts[i] + 1 :] for v, _ in u.terms}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": [1.0, 1.2]}, r"ratios has shape \(2,\); one for each of the 5 steps"),
        ({"ratios": [1.0, 1.2, 1, 1, 1]}, r"ratios\[1\]=1.2 must be 1: dc_order=2 needs 3 outputs"),
        ({"ratios": [1, 1, np.nan, 1, 1]}, r"ratios\[2\] is not finite"),
        ({"ratios": 1.1, "dc_order": 0}, "dc_order=0 is not possible"),
        ({"ratios": 1.1, "base": "heun"}, "one call per step and no inner stages; 'heun' has others"),
        ({"ratios": 1.1, "base": "unipcc"}, "did you mean 'unipc'"),
        ({"base_options": {"ordr": 2}}, "option of method 'unipc'"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_table("dc-solver", make_nodes(VPPath(), "logsnr", 5), **options)


def test_ratios_of_a_late_start_are_those_of_the_steps_that_are_left() -> None:
    nodes = make_nodes(VPPath(), "logsnr", 7)
    options = {"ratios": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "base_options": {"disable_corrector": (0, 4)}}
    late = method_info("dc-solver").late_options(nodes, options, 3)
    assert late["ratios"] == [1.0, 1.0, 1.4, 1.5]
    assert list(late["base_options"]["disable_corrector"]) == [1]
    assert build_table("dc-solver", nodes.part(3), **late).evaluations == 4
    named = method_info("dc-solver").late_options(nodes, {"ratios": "sd2.1"}, 2)
    whole = build_table("dc-solver", nodes, ratios="sd2.1")
    assert named["ratios"] == [1.0, 1.0, *list(_ratios_of(whole))[4:]]


def _ratios_of(table: Table) -> list[float]:
    from pathline.samplers.compensation import SD21_RATIOS

    return SD21_RATIOS.predict(len(table.rows), 7.5).tolist()


# --- search ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> CompensationFit:
    path = DiscretePath.scaled_linear()
    return search_ratios(
        bed_problem(path, 74), make_nodes(path, "linspace", 6), starts(path, 74), base_options={"order": 2}, hold_out=64
    )


def test_searched_ratios_lower_the_error_on_noises_never_fitted(found: CompensationFit) -> None:
    assert found.hold_out is not None
    assert found.hold_out[1] < 0.85 * found.hold_out[0]
    assert found.train[1] < 0.85 * found.train[0]
    assert all(after <= before for before, after in found.step_losses)
    assert found.ratios[:2] == (1.0, 1.0)


def test_the_cost_of_a_search_is_counted_and_small(found: CompensationFit) -> None:
    assert found.evaluations[-2:] == (0, 0)  # nothing reads the last corrected state
    assert all(4 <= n <= 8 for n in found.evaluations[:-2])
    # each searched step pays its evaluations, of which the best is the next step's own call
    own = len(found.ratios) - sum(n > 0 for n in found.evaluations)
    assert found.calls["search"] == 10 * (own + sum(found.evaluations))
    assert found.calls["check"] == 6 * (10 + 2 * 64)


def test_the_result_is_the_table_of_its_ratios(found: CompensationFit) -> None:
    path = DiscretePath.scaled_linear()
    nodes = make_nodes(path, "linspace", 6)
    again = build_table("dc-solver", nodes, ratios=found.ratios, base_options={"order": 2})
    assert again == found.table.released()
    x = starts(path, 74)[:10]
    error = bed_problem(path, 10).run(again, x) - reference_states(bed_problem(path, 10), x, nodes)[-1]
    assert mean_error(error) == pytest.approx(found.train[1], rel=1e-9)


@pytest.mark.parametrize("dc_order", [1, 2, 3])
@pytest.mark.parametrize("base", ["unipc", "dpm++", "ddim"])
def test_every_ratio_is_a_local_minimum_of_its_step(base: str, dc_order: int) -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "time", 6), starts(path, 10)
    fit = search_ratios(bed_problem(path, 10), nodes, x, base=base, dc_order=dc_order, bounds=(-9.0, 9.0))
    states, network = reference_states(bed_problem(path, 10), x, nodes), BED.as_model(path, "data")
    plain = build_table(base, nodes)
    for i in range(dc_order, 6):
        losses = [
            step_loss(plain, [*fit.ratios[:i], fit.ratios[i] + change], dc_order, network, states)
            for change in (-0.02, 0.0, 0.02)
        ]
        assert losses[1] <= min(losses) * (1 + 1e-4)


class Corrected(Hook):
    """Keeps the state after row `row`'s corrector, or its query where there is none."""

    def __init__(self, table: Table, row: int) -> None:
        self.row, counts = row, corrector_updates(table)
        here = table.rows[row]
        self.value = here.updates[counts[row] - 1].target if counts[row] else here.query
        self.state: Tensor | None = None

    def after_row(self, run: RunState) -> None:
        if run.row == self.row:
            self.state = run.values[self.value or 0]


def step_loss(plain: Table, ratios: list[float], dc_order: int, network: Any, states: Tensor) -> float:
    """Mean squared error of the state that the step of the last ratio leads to, by a run of its own."""
    steps, node = len(plain.rows), len(ratios)
    table = compensated(plain, [*ratios, *[1.0] * (steps - node)], order=dc_order)
    if node == steps:
        state = run(table, network, states[0])
    else:
        hook = Corrected(plain, node)
        run(table, network, states[0], hooks=[hook])
        state = hook.state
    assert isinstance(state, Tensor)
    return float((state - states[node]).square().mean())


SEARCHED = sorted(name for name in index() if "dc2_searched" in name)


@pytest.mark.parametrize("golden", SEARCHED)
def test_no_step_ends_farther_off_than_under_the_released_search(golden: str) -> None:
    case = index()[golden]
    g, m = np.load(FOLDER / case["file"]), mixture()
    nodes, options = golden_nodes(case, g), compensation_options(case)
    guided = case["guidance"] != "uncond"

    def network(x: Tensor, t: Tensor) -> Tensor:
        i = int(np.argmin(np.abs(nodes.time - float(t[0]))))
        level = (float(nodes.signal[i]), float(nodes.noise[i]))
        free = data_prediction(g, x, *level, None)
        return torch.lerp(free, data_prediction(g, x, *level, m["labels10"]), 7.5) if guided else free

    x, states = m["z10"], torch.cat([m["z10"][None], torch.tensor(g["ref_x"])])
    stored = options["ratios"]
    plain = build_table("unipc", nodes, **options["base_options"])
    end = run(build_table("dc-solver", nodes, **options), network, x)
    torch.testing.assert_close(end, torch.tensor(g["search_sample"]), rtol=1e-9, atol=1e-9)
    for step in range(2, nodes.steps):
        ours = search_ratios(
            Problem(network, DiscretePath.scaled_linear()),
            nodes,
            x,
            base_options=options["base_options"],
            fixed=stored[:step],
            references=states,
        )
        losses = [
            step_loss(plain, [*stored[:step], ratio], 2, network, states) for ratio in (ours.ratios[step], stored[step])
        ]
        assert losses[0] <= losses[1] * (1 + 1e-6)


def test_the_predicted_state_alone_needs_one_call_per_sample_and_step() -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "time", 6), starts(path, 10)
    fit = search_ratios(bed_problem(path, 10), nodes, x, objective="predicted")
    assert fit.calls["search"] == 6 * 10
    assert fit.train[1] < fit.train[0]


def test_a_guided_search_is_the_same_in_chunks_and_again() -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "karras", 5), starts(path, 12)
    fits = [search_ratios(bed_problem(path, 12, 4.0), nodes, x, hold_out=4, chunk=c) for c in (None, None, 5)]
    assert fits[0].ratios == fits[1].ratios
    np.testing.assert_allclose(fits[2].ratios, fits[0].ratios, atol=1e-8)
    assert fits[0].calls == fits[2].calls


def test_a_search_goes_on_from_the_ratios_of_one_that_was_cut_short() -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "time", 6), starts(path, 10)
    whole = search_ratios(bed_problem(path, 10), nodes, x)
    rest = search_ratios(bed_problem(path, 10), nodes, x, fixed=whole.ratios[:4])
    assert rest.ratios == whole.ratios
    assert rest.calls["search"] < whole.calls["search"]


def test_what_cannot_be_searched_is_refused_before_any_call() -> None:
    path = VPPath()
    nodes, x = make_nodes(path, "time", 6), starts(path, 10)
    for options, message in (
        ({"objective": "best"}, "objective 'best'"),
        ({"evaluations": 3}, "evaluations=3 is not possible; at least dc_order . 2 = 4"),
        ({"bounds": (1.2, 2.0)}, "bounds="),
        ({"base": "heun"}, "no inner stages"),
        ({"base": "dpm++-sde"}, "deterministic method"),
        ({"hold_out": 10}, "hold_out=10"),
        ({"dc_order": 6, "evaluations": 9}, "nothing to compensate"),
        ({"fixed": [1.0, 1.2]}, "must be 1"),
        ({"references": torch.zeros(3, 10, 16)}, "references has shape"),
        ({"references": torch.full((7, 10, 16), torch.nan)}, "NaN"),
    ):
        one = bed_problem(path, 10)
        with pytest.raises(ValueError, match=message):
            search_ratios(one, nodes, x, **options)  # type: ignore[arg-type]
        assert one.calls == 0
    references = reference_states(bed_problem(path, 10), x, nodes)
    short = bed_problem(path, 10, budget=60)
    with pytest.raises(BudgetError, match="the search of compensation ratios needs"):
        search_ratios(short, nodes, x, references=references)
    assert short.calls == 0
