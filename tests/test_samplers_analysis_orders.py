"""Orders without a model: measured ones agree with the declared, exactness with theory; what `analyse` says."""

from typing import Any

import numpy as np
import pytest

from pathline.interpolants import CosinePath, LinearPath, VPPath
from pathline.samplers import Case, Nodes, build_table, make_nodes, method_info, plan
from pathline.samplers.analysis import analyse, case_of, exactness, history_weight, measured_order
from support.problems import gaussian_methods, uniform_nodes, without_lowering

CASES = [(name, case) for name in gaussian_methods() for case in method_info(name).cases]


def _stochastic(name: str, case: Case) -> bool:
    return without_lowering(name, uniform_nodes(case.variable, 4), dict(case.options)).stochastic


FIRST = dict(reversed(CASES))
DETERMINISTIC = [entry for entry in CASES if not _stochastic(*entry)]
STOCHASTIC = [entry for entry in CASES if _stochastic(*entry)]


def _id(value: Any) -> str | None:
    return str(value.options) if isinstance(value, Case) else None


def _later_slow(entries: list[tuple[str, Case]]) -> list[Any]:
    """The first configuration of every method, and the others as slow tests."""
    return [pytest.param(n, c, marks=[] if FIRST[n] is c else [pytest.mark.slow]) for n, c in entries]


@pytest.mark.parametrize(("name", "case"), _later_slow(DETERMINISTIC), ids=_id)
def test_measured_orders_are_the_declared_ones(name: str, case: Case) -> None:
    assert case.order - 0.15 < measured_order(name, **case.options) < case.order + 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), DETERMINISTIC, ids=_id)
def test_measured_cold_orders_are_the_declared_ones(name: str, case: Case) -> None:
    assert case.cold_order - 0.15 < measured_order(name, cold=True, **case.options) < case.cold_order + 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), STOCHASTIC, ids=_id)
def test_measured_weak_orders_are_the_declared_ones(name: str, case: Case) -> None:
    assert case.order - 0.15 < measured_order(name, **case.options) < case.order + 0.6


@pytest.mark.parametrize(
    ("name", "options", "cold"),
    [("unipc", {"order": 3}, 3), ("exp-adams", {"order": 4}, 2), ("ipndm", {"order": 4}, 2), ("plms", {"order": 4}, 3)],
)
def test_a_cold_start_caps_the_order(name: str, options: dict[str, Any], cold: int) -> None:
    assert cold - 0.15 < measured_order(name, cold=True, **options) < cold + 0.6


def test_weak_order_of_stochastic_methods() -> None:
    assert measured_order("ddim", eta=1.0) == pytest.approx(1, abs=0.1)
    assert measured_order("dpm++-sde", order=2) == pytest.approx(2, abs=0.1)


def test_the_order_depends_on_the_spacing() -> None:
    # fixed Adams–Bashforth weights are right to order 2 only where steps are uneven
    assert measured_order("ipndm", order=4, variable="lam") == pytest.approx(2, abs=0.15)
    assert measured_order("lms", order=4, variable="lam") == pytest.approx(4, abs=0.3)


def middle(name: str, steps: int = 12, path: Any = None, **options: Any) -> Any:
    nodes = uniform_nodes("lam", steps) if path is None else make_nodes(path, "time", steps)
    return exactness(without_lowering(name, nodes, options))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_exponential_adams_integrates_polynomials(order: int) -> None:
    found = middle("exp-adams", order=order)
    assert found.basis == "data in λ"
    assert found.degrees == tuple(min(order, i + 1) for i in range(12))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_exactness_of_the_families(order: int) -> None:
    assert middle("lms", order=order).typical == order
    adams = exactness(build_table("ipndm", uniform_nodes("noise_ratio", 9), order=order))
    assert adams is not None
    assert adams.typical == order  # on even steps only
    assert middle("ipndm", order=order).typical == 1
    corrected = middle("unipc", order=order, variant="exact")
    assert corrected.typical == order
    assert corrected.corrected[-1] == order + 1


def test_exactness_of_single_steps_is_stage_by_stage() -> None:
    heun = middle("heun", variant="sigma", path=VPPath())
    assert heun.degrees[-4:] == (1, 2, 1, 2)
    assert middle("heun", variant="time", path=LinearPath()).basis == "velocity in time"
    assert middle("dpm-single", variant="exact", order=2).degrees == (1, 2) * 6
    assert middle("dpm-single", order=2).typical == 1  # the midpoint rule is exact in the limit only
    assert middle("dpm++", variant="exact", order=2).typical == 2
    assert middle("dpm++", order=2).typical == 1


def test_exactness_sees_a_wrong_coefficient() -> None:
    table = without_lowering("exp-adams", uniform_nodes("lam", 8), {"order": 3})
    for row in range(1, 8):
        terms = table.rows[row].updates[0].terms
        newest, before = (
            next(i for i, (v, _) in enumerate(terms) if v == table.rows[k].output) for k in (row, row - 1)
        )
        moved = table
        for place, change in ((newest, 1e-4), (before, -1e-4)):  # constants are still integrated
            moved = moved.with_coefficient((row, 0, place), float(terms[place][1]) + change)
        found = exactness(moved)
        assert found is not None
        assert found.degrees == tuple(1 if k == row else min(3, k + 1) for k in range(8))


def test_exactness_is_left_out_where_it_means_nothing() -> None:
    assert exactness(plan(VPPath(), "ddim", nfe=5, eta=1.0)) is None
    nodes = Nodes([0.1, 0.5, 1.0], [0.9, 0.4, 0.0], anchor=[0.8, 0.4, 0.0])
    assert exactness(build_table("dbim", nodes)) is None


def test_history_weight_is_the_sum_of_absolute_weights() -> None:
    nodes = uniform_nodes("noise_ratio", 9)
    for order, wanted in ((1, 1.0), (2, 2.0), (3, 44 / 12), (4, 160 / 24)):
        found = history_weight(build_table("ipndm", nodes, order=order))
        assert found[-1] == pytest.approx(wanted)
        assert found[0] == 1.0
    # momentum is a sum of all past outputs: (1 − β)·old weights + β·new ones
    momentum = history_weight(build_table("heavy-ball", nodes, order=2, beta=0.8))
    assert 1.0 < momentum[-1] < 2.0
    assert momentum[1] == pytest.approx(0.8 * 1.5 + abs(0.2 - 0.8 * 0.5))


def test_analyse_gathers_everything() -> None:
    values = np.geomspace(2.0, 1e-3, 30)
    found = plan(LinearPath(), "unipc", nfe=8).analyse(values)
    assert found.case == method_info("unipc").cases[0]
    assert found.order == pytest.approx(4, abs=0.2)
    assert found.cold_order == pytest.approx(3, abs=0.2)
    assert found.transfer is not None
    assert found.stability is not None
    assert found.exactness is not None
    text = str(found)
    for word in ("measured order", "exact for polynomial", "stable on the real axis", "Fréchet distance", "RMSE"):
        assert word in text
    assert "note:" not in text
    noisy = str(plan(VPPath(), "dpm++-sde", nfe=8).analyse(values))
    assert "measured weak order" in noisy
    assert "W2/√d" in noisy
    churned = plan(CosinePath(), "edm", nfe=8, churn=4.0).analyse(orders=False)
    assert churned.order is None
    assert "no stability function" in str(churned)


def test_analyse_of_tables_without_a_method() -> None:
    from dataclasses import replace

    table = replace(plan(VPPath(), "dpm++", nfe=5), method="mine")
    found = analyse(table, [1.0, 0.1])
    assert (found.case, found.order, found.stability) == (None, None, None)
    assert "'mine' is not a registered method" in str(found)
    assert found.transfer is not None


def test_case_of_finds_the_declared_configuration() -> None:
    assert case_of("dpm++", {"order": 3, "variant": "exact"}).order == 3
    assert case_of("dpm++", {}).options == {"order": 2}
    assert case_of("heun", {"variant": "time"}).variable == "time"


def test_orders_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a bridge"):
        measured_order("dbim")
    with pytest.raises(ValueError, match="unknown variable 'sigma'"):
        measured_order("ddim", variable="sigma")
