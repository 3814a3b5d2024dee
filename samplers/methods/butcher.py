"""Any explicit Runge–Kutta method, from its Butcher tableau, in noise/signal or in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathline.interpolants import unknown_name

from ..nodes import Level, Nodes
from ..program import Linear, Program, dot
from ..registry import Case, Reference, register
from ..table import Table
from .multistep import check_variant
from .ratio_steps import data_step, needs_data_step
from .runge_kutta import VARIANTS, in_time

BUTCHER = Reference(
    key="hairer1993solving",
    authors="Hairer, Ernst and Nørsett, Syvert P. and Wanner, Gerhard",
    title="Solving Ordinary Differential Equations I: Nonstiff Problems",
    year=1993,
    venue="Springer",
)
Coefficients = Mapping[str, Any]


@dataclass(frozen=True)
class Tableau:
    """An explicit Butcher tableau: row i of `a` has i entries, `b` sums to 1, c_i = Σ_j a_ij lies in [0, 1]."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            lengths = [len(row) for row in self.a]
            raise ValueError(
                f"tableau needs rows a of 0, 1, 2, … entries, as many as b has ({len(self.b)}); got lengths {lengths}"
            )
        if abs(sum(self.b) - 1) > 1e-12:
            raise ValueError(f"the weights b of a tableau must sum to 1, got {list(self.b)}")
        if not all(-1e-12 <= c <= 1 + 1e-12 for c in self.c):
            raise ValueError(f"the stages c of a tableau must lie within the step, in [0, 1], got {list(self.c)}")

    @property
    def c(self) -> tuple[float, ...]:
        """Where the stages lie, as fractions of the step."""
        return tuple(sum(row) for row in self.a)


TABLEAUS = {
    "midpoint": Tableau(((), (1 / 2,)), (0, 1)),
    "ralston": Tableau(((), (2 / 3,)), (1 / 4, 3 / 4)),
    "kutta3": Tableau(((), (1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6)),
    "heun3": Tableau(((), (1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4)),
    "ssp3": Tableau(((), (1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "rk4": Tableau(((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "three-eighths": Tableau(((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}


@register(
    "runge-kutta",
    cases=[
        Case({}, 4, 4, "noise_ratio"),
        *(
            Case({"tableau": name, "variant": variant}, order, order, variable)
            for variant, variable in (("sigma", "noise_ratio"), ("time", "time"))
            for name, order in (("midpoint", 2), ("heun3", 3), ("three-eighths", 4))
        ),
        Case({"tableau": {"a": [[], [0.75]], "b": [1 / 3, 2 / 3]}, "variant": "time"}, 2, 2, "time"),
    ],
    reference=BUTCHER,
)
def runge_kutta(
    nodes: Nodes,
    *,
    tableau: str | Coefficients = "rk4",
    variant: str = "auto",
    lower_order_final: bool = True,
) -> Table:
    """Explicit Runge–Kutta from a Butcher tableau, named or your own: as many calls per step as it has stages.

    Parameters
    ----------
    tableau : {"midpoint", "ralston", "kutta3", "heun3", "ssp3", "rk4", "three-eighths"} or mapping
        Or {"a": [[], [a21], [a31, a32], …], "b": [b1, b2, …]}, explicit, with b summing to 1 and stages inside the
        step; full square rows with zeros from the diagonal on, and "c", are taken as well. torchdiffeq calls
        "three-eighths" rk4. EDM's second-order family has a = [[], [α]] and b = [1 − 1/(2α), 1/(2α)].
    variant : {"auto", "sigma", "time"}
        "sigma": x/signal steps in noise/signal along the noise prediction; steps from signal 0 or to noise 0 are
        data steps. "time": x steps in time along the velocity. "auto": time on linear paths, else sigma.
    lower_order_final : bool
        In time only: a last step to noise 0 is an Euler step where the tableau has a stage at its end; False
        evaluates the velocity there, which velocity networks can give.
    """
    check_variant("runge-kutta", variant, VARIANTS)
    scheme = read_tableau(tableau)
    if in_time(nodes, variant):
        return _in_time(nodes, scheme, lower_order_final)
    program = Program(nodes)
    x = program.state
    stages = _in_ratio(nodes, scheme)
    for i in range(nodes.steps):
        if i in stages:
            x = _ratio_step(program, x, i, scheme, stages[i])
        else:
            x, _ = data_step(program, nodes, i, x)
    return program.finish(x)


def read_tableau(tableau: str | Coefficients) -> Tableau:
    """A tableau by name or from {"a": rows, "b": weights}.

    Raises
    ------
    ValueError
        Unknown name, or coefficients that are not an explicit tableau.
    """
    if isinstance(tableau, str):
        if tableau not in TABLEAUS:
            raise unknown_name("tableau", tableau, TABLEAUS)
        return TABLEAUS[tableau]
    if not isinstance(tableau, Mapping) or not {"a", "b"} <= set(tableau) <= {"a", "b", "c"}:
        raise ValueError(f"tableau={tableau!r} is neither a name nor a mapping with the keys 'a' and 'b' (and 'c')")
    try:
        rows = [[float(v) for v in row] for row in tableau["a"]]
        read = Tableau(
            tuple(tuple(_below(row, i)) for i, row in enumerate(rows)), tuple(float(v) for v in tableau["b"])
        )
        apart = np.abs(np.subtract(tableau.get("c", read.c), read.c)).max()
    except TypeError as error:
        raise ValueError(f"tableau={tableau!r} must hold rows of numbers: {error}") from None
    if apart > 1e-9:
        raise ValueError(f"c={list(tableau['c'])} of the tableau is not the sum of its rows, {list(read.c)}")
    return read


def _below(row: list[float], i: int) -> list[float]:
    """The entries left of the diagonal, where the rest of a full row is 0."""
    return row[:i] if len(row) > i and not any(row[i:]) else row


def _in_ratio(nodes: Nodes, scheme: Tableau) -> dict[int, list[Level]]:
    """The stages of all steps whose ends have a finite noise/signal."""
    steps = [i for i in range(nodes.steps) if not needs_data_step(nodes, i)]
    starts, ends = nodes.noise[steps] / nodes.signal[steps], nodes.noise[1:][steps] / nodes.signal[1:][steps]
    return _stages(nodes, steps, scheme, lambda c: nodes.between_all(-np.log(starts + c * (ends - starts))))


def _ratio_step(program: Program, x: Linear, i: int, scheme: Tableau, stages: list[Level]) -> Linear:
    """x/signal in noise/signal, from node i to node i + 1."""
    start, end = program.nodes.level(i), program.nodes.level(i + 1)
    span = end.noise / end.signal - start.noise / start.signal

    def state(level: Level, weights: Sequence[float], slopes: list[Linear]) -> Linear:
        return (level.signal / start.signal) * x + (level.signal * span) * dot(weights, slopes)

    slopes: list[Linear] = []
    for level, row in zip(stages, scheme.a, strict=True):
        slopes.append(program.query(state(level, row, slopes), level, "noise"))
    return program.let(state(end, scheme.b, slopes))


def _in_time(nodes: Nodes, scheme: Tableau, lower_order_final: bool) -> Table:
    program = Program(nodes)
    x = program.state
    touches_end = max(scheme.c) > 1 - 1e-12
    steps = list(range(nodes.steps))
    starts, spans = nodes.clock[:-1], np.diff(nodes.clock)
    stages = _stages(nodes, steps, scheme, lambda c: nodes.at_clocks(starts + c * spans))
    for i in range(nodes.steps):
        span = spans[i]
        if nodes.noise[i + 1] == 0.0 and lower_order_final and touches_end:
            x = program.let(x + span * program.query(x, i, "velocity"))
            continue
        slopes: list[Linear] = []
        for level, row in zip(stages[i], scheme.a, strict=True):
            slopes.append(program.query(x + span * dot(row, slopes), level, "velocity"))
        x = program.let(x + span * dot(scheme.b, slopes))
    return program.finish(x, frame="velocity")


def _stages(
    nodes: Nodes, steps: list[int], scheme: Tableau, inside: Callable[[float], list[Level]]
) -> dict[int, list[Level]]:
    """The levels of the stages of `steps`: `inside(c)` at fraction c of each, at the ends the nodes themselves."""
    at: dict[float, list[Level]] = {}
    for c in {float(c) for c in scheme.c}:
        whole = round(c) if abs(c - round(c)) < 1e-12 else None
        at[c] = inside(c) if whole is None else [nodes.level(i + whole) for i in steps]
    return {i: [at[float(c)][k] for c in scheme.c] for k, i in enumerate(steps)}
