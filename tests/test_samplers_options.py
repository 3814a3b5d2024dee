"""Options of methods: bad ones are named with what is allowed, published allocations are at hand."""

from typing import Any

import pytest

from pathline.interpolants import VPPath
from pathline.samplers import build_table, make_nodes, singlestep_orders


def test_published_singlestep_allocation() -> None:
    assert [singlestep_orders(n, 3) for n in (6, 7, 8)] == [[3, 2, 1], [3, 3, 1], [3, 3, 2]]
    assert [singlestep_orders(n, 2) for n in (6, 7)] == [[2, 2, 2], [2, 2, 2, 1]]
    orders = singlestep_orders(8, 3)
    table = build_table("dpm-single", make_nodes(VPPath(), "logsnr", len(orders), final="path"), orders=orders)
    assert table.evaluations == 8


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("edm", {"solver": "x"}, "solver='x' is not known to edm"),
        ("sa", {"corrector_order": -1}, "corrector_order=-1 is not possible for sa"),
        ("ghvb", {"first_velocity": "q"}, "first_velocity='q' is not known"),
        ("dpm2", {"eta": 2.0}, r"eta=2.0 is not possible for dpm2; allowed: 0 to 1"),
        ("ddim", {"eta": "a"}, "eta='a' of method 'ddim' must be a number"),
        ("ddim", {"heavy_ball": None}, "heavy_ball=None of method 'ddim' must be a number"),
        ("unipc", {"disable_corrector": 0}, "must be a sequence"),
        ("restart", {"intervals": [(3, 2, 0.06)]}, "must be .levels, repeats, low, high."),
        ("edm", {"churn": 3.0, "s_min": 5.0, "s_max": 1.0}, "leave no level"),
        ("runge-kutta", {"tableau": {"a": 1, "b": [1]}}, "must hold rows of numbers"),
        (
            "runge-kutta",
            {"tableau": {"a": [[0, 0], [0.5, 0]], "b": [0, 1], "c": [0, 0.6]}},
            "is not the sum of its rows",
        ),
        ("runge-kutta", {"tableau": {"a": [[0, 0.1], [0.5, 0]], "b": [0, 1]}}, "rows a of 0, 1, 2"),
        ("res", {"order": 3, "stages": (2 / 3, 0.8)}, "third order cannot be reached"),
        ("res", {"order": 3, "stages": (0.5,)}, "give 2 increasing fractions"),
    ],
    ids=str,
)
def test_a_bad_option_is_named_with_what_is_allowed(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_table(method, make_nodes(VPPath(), "logsnr", 5), **options)


def test_a_full_square_tableau_is_the_explicit_one() -> None:
    square = {"a": [[0, 0], [0.5, 0]], "b": [0, 1], "c": [0, 0.5]}
    nodes = make_nodes(VPPath(), "logsnr", 4)
    ours, named = (build_table("runge-kutta", nodes, tableau=t) for t in (square, "midpoint"))
    assert list(ours.coefficients()) == list(named.coefficients())
