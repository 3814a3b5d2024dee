"""A table whose steps come from different methods, and the Taylor steps of USF with every choice of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..analysis.exactness import states_of
from ..frames import check
from ..methods.multistep import check_order, check_variant, data_steps, grouped_weights, multistep, noise_steps
from ..methods.unipc import corrected, corrector_shape
from ..nodes import Nodes
from ..numerics import Array, moments, vandermonde_weights
from ..program import Linear, Program, dot
from ..table import Row, Table

RELAXATIONS = ("none", "midpoint", "half", "plus", "minus")
FORMS = ("data", "noise")


def splice(nodes: Nodes, tables: Sequence[Table]) -> Table:
    """Step i of table i, for every i: what each step reads (states, outputs, momentum) is that of the steps before.

    A state is the corrected one where the step that called the network there corrected it. Steps are exact in the
    frame "point_mass" one by one, and so is the whole.

    Parameters
    ----------
    nodes : Nodes
    tables : sequence of N Table
        All built on `nodes`: deterministic, one call on each node but the last, no anchors, point-mass frame.

    Raises
    ------
    ValueError
        Another number of tables than steps, or a table of another kind; the message says which.
    """
    if len(tables) != nodes.steps:
        raise ValueError(f"tables holds {len(tables)} of them; one for each of the {nodes.steps} steps is needed")
    parts = {id(table): _Part(table, nodes) for table in tables}
    program = Program(nodes)
    joined = _Joined(program)
    for i, table in enumerate(tables):
        joined.step(i, parts[id(table)])
    table = program.finish(joined.state[-1])
    check(table)
    return table


class _Part:
    """A table with the places of its values: queries, outputs, corrected states, and what defines the others."""

    def __init__(self, table: Table, nodes: Nodes) -> None:
        rows = table.rows
        named = f"table {table.method!r}"
        if table.stochastic or table.anchors or table.frame != "point_mass":
            facts = f"stochastic={table.stochastic}, anchors={table.anchors}, frame={table.frame!r}"
            raise ValueError(
                f"{named} cannot give single steps ({facts}); only deterministic tables without anchors that are exact "
                "in the frame 'point_mass' can"
            )
        levels = [row.level.time for row in rows if row.calls_network]
        if len(rows) != nodes.steps or levels != nodes.time[:-1].tolist():
            raise ValueError(f"{named} must call the network once on each of the {nodes.steps} nodes but the last")
        self.table = table
        self.outputs = {row.output: j for j, row in enumerate(rows)}
        self.states = {row.query: j for j, row in enumerate(rows)}
        self.terms = {u.target: u.terms for row in rows for u in row.updates}
        self.corrected: list[int | None] = [None] * len(rows)
        for j, made in enumerate(states_of(table)):
            for target, _, ahead in made:
                if not ahead and target not in self.states:
                    self.corrected[j] = target
        self.states |= {value: j for j, value in enumerate(self.corrected) if value is not None}

    def next(self, i: int) -> int:
        """The state after step i."""
        rows = self.table.rows
        value = rows[i + 1].query if i + 1 < len(rows) else self.table.result
        assert value is not None
        return value


class _Joined:
    """States and outputs of the joined run so far."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.state: list[Linear] = [program.state]
        self.called: list[tuple[Row, Linear, Linear]] = []  # row, query and output of every call

    def step(self, i: int, part: _Part) -> None:
        row = part.table.rows[i]
        query = self.state[i]
        self.called.append((row, query, self.program.query(query, i, row.form)))
        correction = part.corrected[i]
        if correction is not None:
            self.state[i] = self.program.let(self._defined(part, correction, i))
        self.state.append(self.program.let(self._value(part, part.next(i), i)))

    def _defined(self, part: _Part, value: int, i: int) -> Linear:
        terms = part.terms[value]
        return dot([c for _, c in terms], [self._value(part, v, i) for v, _ in terms])

    def _value(self, part: _Part, value: int, i: int) -> Linear:
        """A value of the part, up to its row i, in those of the joined run."""
        if value in part.outputs:
            return self._output(part.outputs[value], part.table.rows[part.outputs[value]].form)
        place = part.states.get(value, i + 1)
        return self.state[place] if place <= i else self._defined(part, value, i)

    def _output(self, j: int, form: str) -> Linear:
        row, query, output = self.called[j]
        if row.form == form:
            return output
        signal, noise = row.level.signal, row.level.noise
        held, wanted = (noise, signal) if form == "data" else (signal, noise)
        if wanted == 0.0:
            raise ValueError(f"the {form} prediction at node {j} is not known from its {row.form} prediction")
        return (query - held * output) / wanted


def taylor(
    nodes: Nodes,
    *,
    order: int = 2,
    form: str = "data",
    points: int = 0,
    relaxation: str | float = "none",
    corrector: int = 0,
) -> Table:
    """Exponential Taylor steps in λ whose derivatives come from past outputs (Liu et al. 2024, USF).

    x' = carry·x + total·Σ_{k<order} weight_k·D^(k), each derivative from the polynomial through `points` outputs.

    Parameters
    ----------
    nodes : Nodes
    order : {1, 2, 3, 4}
        Terms of the series.
    form : {"data", "noise"}
        What is expanded.
    points : int
        Outputs that the derivatives are taken from, at least `order`; 0 means `order`.
    relaxation : {"none", "midpoint", "half", "plus", "minus"} or float
        Factor on the first derivative, with E = e^z − 1, z = ∓h: ½zE/(E − z), ½z²/(E − z), 1 ± ½E, or 1 + c·h.
    corrector : int
        Outputs, besides the new one, of a corrector without a call of its own; 0 is none.

    Raises
    ------
    ValueError
        An option out of range.
    """
    check_order("taylor", order, 1, 4)
    check_variant("taylor", form, FORMS, argument="form")
    used = points or order
    check_order("taylor", used, order, 5, argument="points")
    check_order("taylor", corrector, 0, 4, argument="corrector")
    if isinstance(relaxation, str):
        check_variant("taylor", relaxation, RELAXATIONS, argument="relaxation")
    elif not np.isfinite(relaxation):
        raise ValueError(f"relaxation={relaxation!r} is not possible; it must be finite")
    steps = data_steps(nodes) if form == "data" else noise_steps(nodes)
    first = int(nodes.starts_pure)

    def counts(most: int) -> list[int]:
        found = [max(1, min(most, i + 1 - first)) for i in range(nodes.steps)]
        return [1 if not np.isfinite(z) else n for n, z in zip(found, steps.z, strict=True)]

    def shape(places: Array, z: Array) -> Array:
        kept = min(order, places.shape[-1])
        targets = np.zeros(places.shape)
        targets[..., :kept] = moments(kept, z)
        if kept > 1:
            targets[..., 1] *= _relaxed(relaxation, z, -z if form == "data" else z)
        return vandermonde_weights(places, targets) / targets[..., :1]

    table = multistep(nodes, steps, counts(used), shape)
    if corrector:
        shapes = grouped_weights(nodes, steps.z, counts(corrector), lambda r, z: corrector_shape(r, z, "exact"))
        table = corrected(table, nodes, steps, shapes, form)
    check(table)
    return table


def _relaxed(kind: str | float, z: Array, h: Array) -> Array:
    """Factor on the first derivative of steps with exponents z and lengths h."""
    if not isinstance(kind, str):
        return 1.0 + kind * h
    grown = np.expm1(z)
    factors = {
        "none": np.ones_like(z),
        "midpoint": 0.5 * z * grown / (grown - z),
        "half": 0.5 * z**2 / (grown - z),
        "plus": 1.0 + 0.5 * grown,
        "minus": 1.0 - 0.5 * grown,
    }
    return np.asarray(factors[kind])
