"""Couplings by name, as a training run asks for them."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..errors import check_name, unknown_name
from .conditional import ConditionalCoupling
from .costs import power_distance
from .pairing import Coupling, IndependentCoupling, TransportCoupling

_MAKERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "independent": (IndependentCoupling, ()),
    "ot": (TransportCoupling, ()),
    "sinkhorn": (partial(TransportCoupling, "sinkhorn"), ("regularisation", "tolerance", "each_data")),
    "newton": (partial(TransportCoupling, "newton"), ("regularisation", "tolerance", "each_data")),
    "c2ot": (ConditionalCoupling, ("ratio", "weight", "tolerance")),
}
COUPLINGS = tuple(_MAKERS)
"""Names for `coupling_by_name`."""


def coupling_by_name(name: str, **parameters: Any) -> Coupling:
    """Make a coupling from plain values.

    Parameters
    ----------
    name : {"independent", "ot", "sinkhorn", "newton", "c2ot"}
        As they come; exact assignment; pairs of an entropic plan by either solver; assignment with a price on changing
        the condition.
    **parameters
        Those of the class: regularisation (by default 0.05 of the mean cost), tolerance and each_data of entropic
        plans; ratio, weight and tolerance of c2ot. All but "independent" also take `power`, p of the cost Σ|a − b|^p/p
        in place of the squared distance.

    Raises
    ------
    ValueError
        An unknown name or parameter, or a value that is not possible.
    """
    make, known = _MAKERS[check_name("coupling", name, COUPLINGS)]
    if name != "independent":
        known = (*known, "power")
    for key in parameters:
        if key not in known:
            raise unknown_name(f"parameter of the coupling {name!r}", key, known or ["(none)"])
    given = dict(parameters)
    for key, value in given.items():
        kind = bool if key == "each_data" else (int, float)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ValueError(
                f"{key}={value!r} of the coupling {name!r} must be {'true or false' if kind is bool else 'a number'}"
            )
    if "power" in given:
        given["cost"] = power_distance(given.pop("power"))
    coupling: Coupling = make(**given)
    return coupling
