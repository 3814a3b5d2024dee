"""DC-Solver: dynamic compensation of any method with one call per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..compensation import SD21_RATIOS, compensated, step_ratios
from ..nodes import Nodes
from ..numerics import Array
from ..registry import Case, Reference, build_table, method_info, register
from ..table import Table

DC_SOLVER = Reference(
    key="zhao2024dcsolver",
    authors="Zhao, Wenliang and Wang, Haolin and Zhou, Jie and Lu, Jiwen",
    title="DC-Solver: Improving Predictor-Corrector Diffusion Sampler via Dynamic Compensation",
    year=2024,
    venue="ECCV",
    arxiv="2409.03755",
)
RELEASED = "sd2.1"


def _late(nodes: Nodes, options: Mapping[str, Any], left_out: int) -> dict[str, Any]:
    base = options.get("base", "unipc")
    order = options.get("dc_order", 2)
    ratios = _ratios(options.get("ratios"), nodes.steps, order, options.get("guidance_scale", 7.5))[left_out:]
    ratios[:order] = 1.0  # history is empty again
    inner = method_info(base).late_options(nodes, dict(options.get("base_options") or {}), left_out)
    return {**options, "ratios": ratios.tolist(), "base_options": inner}


@register(
    "dc-solver",
    cases=[
        Case({}, 4, 3),
        Case({"base_options": {"order": 2}}, 3, 3),
        Case({"base": "dpm++"}, 2, 2),
        Case({"ratios": 1.1}, 1, 1),
        Case({"base": "ddim", "ratios": 1.2, "dc_order": 1}, 1, 1),
    ],
    reference=DC_SOLVER,
    late_options=_late,
)
def dc_solver(
    nodes: Nodes,
    *,
    base: str = "unipc",
    ratios: float | str | Sequence[float] | None = None,
    dc_order: int = 2,
    guidance_scale: float = 7.5,
    lower_order_final: bool | None = None,
    base_options: Mapping[str, Any] | None = None,
) -> Table:
    """DC-Solver: dynamic compensation of any method with one call per step, by default UniPC.

    Before each step the newest output is moved to the time ρ·t_i + (1 − ρ)·t_{i−1} along the polynomial through the
    last dc_order + 1 outputs; see `compensated`. The ratios are what is calibrated (`calibrate.compensation`).

    Parameters
    ----------
    base : str
        A registered method of one call per step.
    ratios : float, sequence of N floats, or "sd2.1", optional
        ρ of every step; 1 (the default) is the base itself. A number stands for all steps but the first dc_order.
        "sd2.1" takes the released regression for Stable Diffusion 2.1 at `guidance_scale`.
    dc_order : int ≥ 1
        Degree of the interpolation.
    guidance_scale : float
        For which "sd2.1" predicts.
    lower_order_final : bool, optional
        As in the base, where it has that option; by default the base's own.
    base_options : mapping, optional
        Other options of the base.
    """
    inner = dict(base_options or {})
    if lower_order_final is not None and "lower_order_final" in method_info(base).options:
        inner = {"lower_order_final": lower_order_final, **inner}
    table = replace(build_table(base, nodes, **inner), options={})
    return compensated(table, _ratios(ratios, len(table.rows), dc_order, guidance_scale), order=dc_order)


def _ratios(ratios: float | str | Sequence[float] | None, steps: int, order: int, guidance: float) -> Array:
    if isinstance(ratios, str):
        if ratios != RELEASED:
            raise ValueError(f"ratios={ratios!r} is not known to dc-solver; pass numbers, or {RELEASED!r}")
        predicted = SD21_RATIOS.predict(steps, guidance)
        predicted[:order] = 1.0
        return predicted
    return step_ratios(1.0 if ratios is None else ratios, steps, order).copy()
