"""Exponential Adams–Bashforth of any order, with exact variable-step weights."""

from __future__ import annotations

from ..nodes import Nodes
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_order, data_steps, exponential_shape, multistep, step_orders

EXPONENTIAL_ADAMS = Reference(
    key="hochbruck2010exponential",
    authors="Hochbruck, Marlis and Ostermann, Alexander",
    title="Exponential integrators",
    year=2010,
    venue="Acta Numerica 19",
)


@register(
    "exp-adams",
    cases=[Case({"order": p}, p, min(p, 2)) for p in (3, 1, 2, 4, 5)],
    reference=EXPONENTIAL_ADAMS,
)
def exp_adams(nodes: Nodes, *, order: int = 3, lower_order_final: bool = True) -> Table:
    """Exact exponential Adams–Bashforth of any order in λ, data form.

    x' = (noise'/noise)·x + signal'·∫_0^h e^{−(h−u)} P(u) du with P the polynomial through the last `order`
    data predictions. Equal to UniP with varying coefficients, to SA-Solver's predictor at τ = 0 and to
    DPM-Solver++ with `variant="exact"`.

    Parameters
    ----------
    order : int ≥ 1
        Number of outputs used (fewer at the start).
    lower_order_final : bool
        Lower the order to …, 2, 1 over the last steps; a last step to noise 0 always has order 1.
    """
    check_order("exp-adams", order, 1)
    return multistep(nodes, data_steps(nodes), step_orders(nodes, order, lower_order_final), exponential_shape)
