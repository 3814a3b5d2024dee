"""A table as JSON values and named arrays, which is what its files hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from .bases import basis_named
from .nodes import Level
from .numerics import Array
from .table import Coefficient, Row, Table, Terms, Update

FORMATS = (1, 2)
"""Formats that this version reads; 2 has bases, constants and coefficients by group."""
_MOST_GROUPS = 64


def encode(table: Table, arrays: dict[str, Array]) -> dict[str, Any]:
    """The table as JSON values; its arrays go into `arrays`, under the names by which the values refer to them.

    An array of few different numbers is kept as those and one array of places, which others of the same groups share.
    """
    places: dict[bytes, str] = {}

    def named(kind: str, array: np.ndarray[Any, Any]) -> str:
        name = f"{kind}{len(arrays)}"
        arrays[name] = np.ascontiguousarray(array)
        return name

    def coefficient(c: Coefficient) -> Any:
        if not isinstance(c, np.ndarray):
            return float(c)
        if (found := _by_group(c)) is None:
            return named("c", c)
        numbers, where = found
        key = repr(where.shape).encode() + where.tobytes()
        if key not in places:
            places[key] = named("groups", where)
        return {"groups": places[key], "values": [float(v) for v in numbers]}

    def terms(items: Terms | None) -> Any:
        return None if items is None else [[v, coefficient(c)] for v, c in items]

    content = {
        "method": table.method,
        "options": table.options,
        "provenance": table.provenance,
        "frame": table.frame,
        "law": table.law,
        "anchors": list(table.anchors),
        "start": list(table.start),
        "end": list(table.end),
        "result": table.result,
        "nodes": table.nodes,
        "rows": [
            {
                "level": list(row.level),
                "form": row.form,
                "query": row.query,
                "output": row.output,
                "estimate": terms(row.estimate),
                "noises": list(row.noises),
                "updates": [[u.target, terms(u.terms)] for u in row.updates],
            }
            for row in table.rows
        ],
    }
    if table.constants:
        content["constants"] = {
            name: float(c) if np.ndim(c) == 0 else named("constant", np.asarray(c))
            for name, c in table.constants.items()
        }
    if table.basis is not None:
        content["basis"] = table.basis
    later = table.basis is not None or table.constants or places
    return {"format": FORMATS[-1] if later else FORMATS[0], **content}


def decode(content: Any, arrays: dict[str, Array]) -> Table:
    """The table that `encode` gave; not checked in its frame.

    Raises
    ------
    ValueError, KeyError, TypeError
        It is none, or of a newer format.
    """
    if not isinstance(content, dict) or not isinstance(content.get("method"), str):
        raise ValueError("it holds no table")
    if content.get("format") not in FORMATS:
        raise ValueError(f"format {content.get('format')!r}; this version reads formats 1 to {FORMATS[-1]}")

    def coefficient(c: Any) -> Coefficient:
        if isinstance(c, dict):
            return np.array(c["values"], dtype=np.float64)[arrays[c["groups"]]]
        return arrays[c] if isinstance(c, str) else float(c)

    def terms(items: Any) -> Terms:
        return tuple((int(v), coefficient(c)) for v, c in items)

    rows = tuple(
        Row(
            Level(*row["level"]),
            row["form"],
            row["query"],
            row["output"],
            None if row["estimate"] is None else terms(row["estimate"]),
            tuple(row["noises"]),
            tuple(Update(target, terms(items)) for target, items in row["updates"]),
        )
        for row in content["rows"]
    )
    basis = content.get("basis")
    if basis is not None:
        basis_named(basis)
    return Table(
        rows=rows,
        start=Level(*content["start"]),
        end=Level(*content["end"]),
        result=content["result"],
        anchors=tuple(content["anchors"]),
        frame=content["frame"],
        law=content["law"],
        nodes=content["nodes"],
        method=content["method"],
        options=content["options"],
        provenance=content.get("provenance", {}),
        basis=basis,
        constants={name: coefficient(c) for name, c in content.get("constants", {}).items()},
    )


def equal(table: Table, other: Table) -> bool:
    """Whether two tables have the same content, number for number."""
    arrays: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    if encode(table, arrays[0]) != encode(other, arrays[1]):
        return False
    return all(np.array_equal(array, arrays[1][name]) for name, array in arrays[0].items())


def _by_group(c: Array) -> tuple[Array, np.ndarray[Any, np.dtype[np.uint8]]] | None:
    """The numbers of an array in the order of their first place, and each coordinate's place among them."""
    if c.dtype != np.float64:
        return None
    numbers, first, where = np.unique(c, return_index=True, return_inverse=True)
    if len(numbers) > _MOST_GROUPS or 4 * len(numbers) > c.size or not np.isfinite(numbers).all():
        return None
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.uint8)
    rank[order] = np.arange(len(order))
    return numbers[order], rank[where.reshape(c.shape)]
