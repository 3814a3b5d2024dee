"""A small language in which methods are written: linear expressions over the values of a run.

A method reads like its paper::

    p = Program(nodes)
    x = p.state
    for i in range(nodes.steps):
        D = p.query(x, i)
        x = p.let(carry[i] * x + weight[i] * D)
    return p.finish(x)

`let` stores an expression as a new value; nothing is ever overwritten, so history needs no shifting, and the
loop frees a value after its last use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .nodes import Level, Nodes
from .numerics import Array
from .table import Coefficient, Row, Table, Update


class Linear:
    """A linear combination of values of a run; supports +, −, scalar (or per-coordinate array) · and /."""

    __slots__ = ("terms",)
    __array_ufunc__ = None  # numpy scalars on the left defer to __rmul__

    def __init__(self, terms: dict[int, Coefficient]) -> None:
        self.terms = terms

    def __add__(self, other: Linear) -> Linear:
        terms = dict(self.terms)
        for value, c in other.terms.items():
            terms[value] = terms[value] + c if value in terms else c
        return Linear(terms)

    def __sub__(self, other: Linear) -> Linear:
        return self + (-1.0) * other

    def __neg__(self) -> Linear:
        return (-1.0) * self

    def __mul__(self, factor: Coefficient) -> Linear:
        return Linear({value: c * factor for value, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Linear:
        return self * (1.0 / divisor)

    def __repr__(self) -> str:
        return " + ".join(f"{c}·[{value}]" for value, c in self.terms.items()) or "0"


def dot(weights: Iterable[Coefficient] | Array, values: Iterable[Linear]) -> Linear:
    """Σ_j weights_j·values_j over the shorter of the two."""
    total = dict[int, Coefficient]()
    for weight, value in zip(weights, values, strict=False):
        for key, c in value.terms.items():
            total[key] = total.get(key, 0.0) + weight * c
    return Linear(total)


@dataclass
class _OpenRow:
    level: Level
    form: str
    query: int | None
    output: int | None
    noises: list[int] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)


class Program:
    """Collects the rows of a method on `nodes`; `finish` returns the Table.

    Parameters
    ----------
    nodes : Nodes
    anchors : names of constant tensors supplied at run time, such as "source" or "data_mean".
    """

    def __init__(self, nodes: Nodes, anchors: tuple[str, ...] = ()) -> None:
        self.nodes = nodes
        self.anchors = anchors
        self._rows: list[_OpenRow] = []
        self._count = 1 + len(anchors)
        self.state = Linear({0: 1.0})

    def anchor(self, name: str) -> Linear:
        """The constant tensor `name` as an expression."""
        return Linear({1 + self.anchors.index(name): 1.0})

    def query(self, x: Linear, at: int | Level, form: str = "data") -> Linear:
        """Open a row that evaluates the network at `x` on level `at`; returns its output in `form`.

        form is "data" (D = E[data|x]), "noise" (E[noise|x]) or "velocity" (E[dx/dtime|x]).
        """
        value = self._value(x)
        output = self._new()
        level = at if isinstance(at, Level) else self.nodes.level(at)
        self._rows.append(_OpenRow(level, form, value, output))
        return Linear({output: 1.0})

    def pause(self, at: int | Level) -> None:
        """Open a row without a network call (churn, restart, pure noise)."""
        level = at if isinstance(at, Level) else self.nodes.level(at)
        self._rows.append(_OpenRow(level, "data", None, None))

    def noise(self) -> Linear:
        """A fresh standard normal drawn in the current row; may be used in several expressions."""
        value = self._new()
        self._rows[-1].noises.append(value)
        return Linear({value: 1.0})

    def let(self, expression: Linear) -> Linear:
        """Store `expression` as a value computed in the current row."""
        terms = tuple((v, c) for v, c in expression.terms.items() if isinstance(c, np.ndarray) or c != 0.0)
        if len(terms) == 1 and not isinstance(terms[0][1], np.ndarray) and terms[0][1] == 1.0:
            return Linear({terms[0][0]: 1.0})
        if not self._rows:
            raise ValueError("the first expression needs an open row; call query(...) or pause(...) first")
        value = self._new()
        self._rows[-1].updates.append(Update(value, tuple((v, _plain(c)) for v, c in terms)))
        return Linear({value: 1.0})

    def finish(self, x: Linear, frame: str = "point_mass", law: str = "exact") -> Table:
        """Close the program with result `x`; unused values are dropped. See Table for `frame` and `law`."""
        result = self._value(x)
        used = {result}
        rows = []
        for row in reversed(self._rows):
            updates = []
            for update in reversed(row.updates):
                if update.target in used:
                    used.update(v for v, _ in update.terms)
                    updates.append(update)
            if row.query is not None:
                used.add(row.query)
            noises = tuple(z if z in used else -1 for z in row.noises)
            rows.append(Row(row.level, row.form, row.query, row.output, None, noises, tuple(reversed(updates))))
        rows.reverse()
        end = self.nodes.level(self.nodes.steps)
        return Table(rows=tuple(rows), start=self.nodes.level(0), end=end, result=result, anchors=self.anchors,
                     frame=frame, law=law, nodes=self.nodes.config())  # fmt: skip

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _value(self, x: Linear) -> int:
        (value,) = self.let(x).terms
        return value


def _plain(c: Coefficient) -> Coefficient:
    return c if isinstance(c, np.ndarray) and c.ndim else float(c)
