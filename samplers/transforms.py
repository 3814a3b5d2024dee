"""Table → table: an analytic first step, a corrector for any method with one call per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pathline.interpolants import unknown_name

from .nodes import Nodes
from .numerics import Array
from .program import Linear, Program, dot
from .table import Row, Table, Terms, Update

AFS_KINDS = ("unit", "zero", "gaussian")


def analytic_first_step(table: Table, kind: str = "unit") -> Table:
    """Replace the first network call by an estimate that is affine in the state: one evaluation less.

    Parameters
    ----------
    table : Table
        Its first row must query the initial state.
    kind : {"unit", "zero", "gaussian"}
        "unit": data of mean 0 and variance 1, so noise ≈ noise·x/(signal² + noise²), in the form of the
        published code (Dockhorn et al. 2022; Zhou et al. 2024): ε = x/√(signal² + noise²).
        "zero": data ≈ 0, so ε = x/noise.
        "gaussian": data ≈ the anchor "data_mean", given to `run` as anchors={"data_mean": ...}, variance 0.

    Raises
    ------
    ValueError
        Unknown kind, or a table whose first call is not at the initial state.
    """
    if kind not in AFS_KINDS:
        raise unknown_name("analytic first step", str(kind), AFS_KINDS)
    first = next((k for k, row in enumerate(table.rows) if row.query is not None), None)
    if first is None or table.rows[first].query != 0 or table.rows[first].estimate is not None:
        raise ValueError(
            f"afs={kind!r} needs a table whose first call is at the initial state; {table.method!r} is not"
        )
    if kind == "gaussian":
        table = _with_anchor(table, "data_mean")
    row = table.rows[first]
    rows = list(table.rows)
    rows[first] = replace(row, estimate=_estimate(row, kind, table.anchors))
    return replace(table, rows=tuple(rows))


def _estimate(row: Row, kind: str, anchors: tuple[str, ...]) -> Terms:
    level = row.level
    query = row.query or 0
    if kind == "gaussian":
        mean = 1 + anchors.index("data_mean")
        data, noise = {mean: 1.0}, {query: 1 / level.noise, mean: -level.signal / level.noise}
    elif kind == "zero":
        data, noise = {}, {query: 1 / level.noise}
    else:
        spread = (level.signal**2 + level.noise**2) ** 0.5
        noise = {query: 1 / spread}
        data = {query: (1 - level.noise / spread) / level.signal} if level.signal else {}
    if row.form == "data":
        return tuple(data.items())
    if row.form == "noise":
        return tuple(noise.items())
    if level.signal_rate is None or level.noise_rate is None:
        raise ValueError("an analytic first step in velocity form needs the path's rates; pass path=... to Nodes")
    return tuple((level.signal_rate * Linear({**data}) + level.noise_rate * Linear({**noise})).terms.items())


def denoise_end(table: Table) -> Table:
    """Add a last call that returns the data prediction at the table's end: one evaluation more.

    For tables that stop at a small positive noise, as official samplers do with "denoise to zero".

    Raises
    ------
    ValueError
        The table already ends at noise 0.
    """
    level = table.end
    if level.noise == 0.0:
        raise ValueError(f"table {table.method!r} already ends at noise 0; there is nothing left to denoise")
    used = max(u for row in table.rows for u in (*(t.target for t in row.updates), row.output or 0, *row.noises))
    last = Row(level, "data", table.result, used + 1, None, (), ())
    end = level._replace(signal=1.0, noise=0.0, signal_rate=None, noise_rate=None)
    return replace(table, rows=(*table.rows, last), result=used + 1, end=end)


def _with_anchor(table: Table, name: str) -> Table:
    """The same table with one more anchor: every later value moves up by one."""
    if name in table.anchors:
        return table
    place = 1 + len(table.anchors)

    def moved(value: int) -> int:
        return value if value < place else value + 1

    def terms(items: Terms) -> Terms:
        return tuple((moved(v), c) for v, c in items)

    rows = tuple(
        replace(
            row,
            query=None if row.query is None else moved(row.query),
            output=None if row.output is None else moved(row.output),
            estimate=None if row.estimate is None else terms(row.estimate),
            noises=tuple(moved(z) for z in row.noises),
            updates=tuple(Update(moved(u.target), terms(u.terms)) for u in row.updates),
        )
        for row in table.rows
    )
    return replace(table, rows=rows, result=moved(table.result), anchors=(*table.anchors, name))


def apply_corrector(
    table: Table, nodes: Nodes, carry: Array, weights: Sequence[Array | None], *, form: str = "data"
) -> Table:
    """Correct every state after the call there: no extra evaluations (predict, evaluate, correct).

    After the call at node i+1 the state is recomputed as carry_i·x_i + Σ_j weights_ij·output_{i−j} +
    weights_i,last·output_{i+1} from the corrected x_i, plus the very noise its prediction was given, and the next
    prediction starts from it. The last step is never corrected, since its end is not evaluated.

    Parameters
    ----------
    table : Table
        One call on each node but the last, no inner stages.
    nodes : Nodes
        The nodes `table` was built on.
    carry : array (N,)
        Factor of the state in every step.
    weights : sequence of N arrays or None
        For each step the weights of the outputs up to node i, newest first, then of the one at node i+1;
        None leaves that step uncorrected.
    form : {"data", "noise"}
        The outputs that `weights` apply to.

    Raises
    ------
    ValueError
        The table has inner stages.
    """
    _check_correctable(table, nodes)
    program = Program(nodes, table.anchors)
    now = {0: program.state} | {1 + i: program.anchor(a) for i, a in enumerate(table.anchors)}
    x, history, drawn = program.state, list[Linear](), Linear({})
    for i, row in enumerate(table.rows):
        assert row.query is not None
        assert row.output is not None
        predicted = now[row.query]
        now[row.output] = program.query(predicted, i, row.form)
        output = _as_form(now[row.output], predicted, row, form)
        w = weights[i - 1] if i else None
        if w is not None:
            outputs = [*history[: len(w) - 1], output]
            now[row.query] = program.let(float(carry[i - 1]) * x + dot(w, outputs) + drawn)
        x = now[row.query]
        history.insert(0, output)
        now |= {z: program.noise() for z in row.noises}
        for target, terms in row.updates:
            now[target] = program.let(dot([c for _, c in terms], [now[v] for v, _ in terms]))
        noise_terms = [(v, c) for v, c in (row.updates[-1].terms if row.updates else ()) if v in row.noises]
        drawn = dot([c for _, c in noise_terms], [now[v] for v, _ in noise_terms])
    corrected = program.finish(now[table.result], frame=table.frame, law=table.law)
    return replace(corrected, method=table.method, options=table.options)


def _as_form(output: Linear, query: Linear, row: Row, form: str) -> Linear:
    if row.form == form or row.level.signal == 0.0:  # at signal 0 only data exists, and nothing weights it
        return output
    return (query - row.level.signal * output) / row.level.noise


def _check_correctable(table: Table, nodes: Nodes) -> None:
    same_levels = len(table.rows) == nodes.steps and all(
        row.level.time == nodes.time[i] for i, row in enumerate(table.rows)
    )
    if not same_levels or any(row.form == "velocity" or row.query is None for row in table.rows):
        raise ValueError("a corrector needs one call on each node but the last (no inner stages, no velocity rows)")
