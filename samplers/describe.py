"""A table as text that reads like the update rule of a paper."""

from __future__ import annotations

import numpy as np

from .table import Coefficient, Table, Terms

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def describe(table: Table) -> str:
    """Header (method, options, evaluations, frame) and one block of lines for each row."""
    options = ", ".join(f"{k}={v}" for k, v in table.options.items())
    kind = f"stochastic, law {table.law}" if table.stochastic else "deterministic"
    lines = [
        f"{table.method}({options})",
        f"{table.evaluations} evaluations, {table.registers} registers, {kind}, frame {table.frame}",
    ]
    if table.basis is not None:
        lines.append(f"array coefficients are filters in the {table.basis} basis")
    lines += [f"constant {name}: {_constant(c)}" for name, c in table.constants.items()]
    names = value_names(table)
    for k, row in enumerate(table.rows):
        level = row.level
        head = f"row {k}: time {level.time:.6g}, signal {level.signal:.6g}, noise {level.noise:.6g}"
        if row.query is not None and row.output is not None:
            query, output = names[row.query], names[row.output]
            head += f"   {output} = " + (
                f"{row.form}({query})" if row.estimate is None else f"estimate {_terms(row.estimate, names)}"
            )
        lines.append(head)
        lines += [f"    {names[u.target]} = {_terms(u.terms, names)}" for u in row.updates]
    lines.append(f"result {names[table.result]} at signal {table.end.signal:.6g}, noise {table.end.noise:.6g}")
    return "\n".join(lines)


def value_names(table: Table) -> dict[int, str]:
    """A readable name for every value: x₀ x₁ … states, D/N/u outputs, z noises, anchors by name."""
    names = {0: "x₀"} | {1 + i: name for i, name in enumerate(table.anchors)}
    letters = {"data": "D", "noise": "N", "velocity": "u"}
    states = noises = 0
    for k, row in enumerate(table.rows):
        if row.output is not None:
            names[row.output] = letters[row.form] + str(k).translate(_SUBSCRIPTS)
        for z in row.noises:
            names[z] = "z" + str(noises).translate(_SUBSCRIPTS)
            noises += 1
        for update in row.updates:
            states += 1
            names[update.target] = "x" + str(states).translate(_SUBSCRIPTS)
    return names


def _terms(terms: Terms, names: dict[int, str]) -> str:
    text = ""
    for value, c in terms:
        sign = "-" if not isinstance(c, np.ndarray) and c < 0 else "+"
        text += f" {sign} {_number(c)}·{names[value]}" if text or sign == "-" else f"{_number(c)}·{names[value]}"
    return text.strip() or "0"


def _constant(c: Coefficient) -> str:
    return f"array{c.shape}, mean {c.mean():.6g}" if isinstance(c, np.ndarray) else f"{c:.6g}"


def _number(c: Coefficient) -> str:
    if isinstance(c, np.ndarray):
        return f"array{c.shape}"
    return f"{abs(c):.6g}"
