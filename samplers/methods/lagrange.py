"""Variable-step multistep in noise/signal: LMS, DEIS in its three variables, and exact iPNDM_v."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..nodes import Nodes
from ..numerics import Array, polynomial_weights
from ..registry import Case, register
from ..table import Table
from .dpm import K_DIFFUSION
from .ipndm import IPNDM
from .multistep import check_order, check_variant, exponential_shape, multistep, noise_steps, step_orders
from .ratio_steps import ratio_multistep

LMS = K_DIFFUSION
DEIS = IPNDM
RatioRule = Callable[[Array, int, int], Array]
DEIS_VARIANTS = ("tab", "rhoab", "logrho", "released")

# the linear VP schedule that the released DEIS code fits to noise/signal in [0.002, 80]
_EPS, _LOW, _HIGH = 1e-3, np.log1p(0.002**2), np.log1p(80.0**2)
_BETA_SPAN = float(2 * (_LOW / _EPS - _HIGH) / (_EPS - 1))
_BETA_MIN = float(_HIGH - 0.5 * _BETA_SPAN)
_GAUSS_NODES, _GAUSS_WEIGHTS = (
    0.5 * (a + b) for a, b in zip(np.polynomial.legendre.leggauss(64), (1.0, 0.0), strict=True)
)


def ratio_weights(
    nodes: Nodes, order: int, lower_order_final: bool, rule: RatioRule, *, to_data: bool
) -> list[Array | None]:
    """Weights of every step by `rule(ratio, i, p)`, order warming up.

    None marks a data step: from signal 0 and, with `to_data`, to noise 0.
    """
    ratio = np.divide(nodes.noise, nodes.signal, where=nodes.signal > 0, out=np.full(nodes.steps + 1, np.inf))
    weights: list[Array | None] = []
    for i in range(nodes.steps):
        p = min(order, i + 1 - nodes.starts_pure, nodes.steps - i if lower_order_final else order)
        plain = p < 1 or (nodes.noise[i + 1] == 0.0 and (to_data or p == 1))
        weights.append(None if plain else rule(ratio, i, p))
    return weights


def lagrange(ratio: Array, i: int, p: int) -> Array:
    """Exact weights of the polynomial through the last p noises, in noise/signal."""
    span = ratio[i + 1] - ratio[i]
    return polynomial_weights((ratio[i - np.arange(p)] - ratio[i]) / span)


@register("lms", cases=[Case({"order": p}, p, min(p, 2), "noise_ratio") for p in (4, 1, 2, 3)], reference=LMS)
def lms(nodes: Nodes, *, order: int = 4, lower_order_final: bool = False) -> Table:
    """Linear multistep: exact variable-step Adams–Bashforth in noise/signal on the noise prediction.

    Equal to DEIS-ρAB and to a correct iPNDM_v.

    Parameters
    ----------
    order : {1, …, 4}
    lower_order_final : bool
        Lower the order to …, 2, 1 over the last steps, so that a step to noise 0 returns the data prediction;
        k-diffusion does not, and neither does the default.
    """
    check_order("lms", order, 1, 4)
    return ratio_multistep(nodes, ratio_weights(nodes, order, lower_order_final, lagrange, to_data=lower_order_final))


@register(
    "ipndm_v",
    cases=[Case({"order": p}, p, min(p, 2), "noise_ratio") for p in (4, 1, 2, 3)],
    reference=IPNDM,
)
def ipndm_v(nodes: Nodes, *, order: int = 4, variant: str = "exact", lower_order_final: bool = False) -> Table:
    """Variable-step iPNDM: Adams–Bashforth with variable-step Adams–Bashforth weights in noise/signal.

    Parameters
    ----------
    order : {1, …, 4}
    variant : {"exact", "released"}
        "released" reproduces the weights of the published code, which differ beyond order 2 by a misplaced
        parenthesis and are exact to order 1 only; at order 4 they sum to 1 on uniform grids only.
    lower_order_final : bool
        Lower the order to …, 2, 1 over the last steps; a last step to noise 0 returns the data prediction.
    """
    check_order("ipndm_v", order, 1, 4)
    check_variant("ipndm_v", variant, ("exact", "released"))
    rule = lagrange if variant == "exact" else released_ipndm_v
    table = ratio_multistep(nodes, ratio_weights(nodes, order, lower_order_final, rule, to_data=True))
    if variant == "released" and order == 4:
        return replace(table, frame="none: the released weights of order 4 do not sum to 1")
    return table


def released_ipndm_v(ratio: Array, i: int, p: int) -> Array:
    """Weights of the published iPNDM_v code, as the sum of divided-difference corrections it makes."""
    if p < 3:
        return lagrange(ratio, i, p)
    h, *back = np.abs(np.diff(ratio[i - p + 1 : i + 2]))[::-1]
    h1, h2 = back[0], back[1]
    third = 0.5 * (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2)))
    weights = np.zeros(p)
    weights[:2] = 1 + h / (2 * h1), -h / (2 * h1)
    weights[:3] += third * np.array([1, -(1 + h1 / h2), h1 / h2])
    if p == 4:
        h3 = back[2]
        reach = h1 * (h1 + h2) / (h2 * (h2 + h3))
        fourth = 0.5 * (1 - h / (3 * (h + h1))) + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        fourth *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        weights += fourth * np.array([1, -(1 + h1 / h2 + reach), h1 / h2 + reach * (1 + h2 / h3), -reach * h1 / h2])
    return weights


@register(
    "deis",
    cases=[
        Case({"order": 4, "variant": "tab"}, 4, 2, "noise_ratio"),
        Case({"order": 3, "variant": "tab"}, 3, 2, "noise_ratio"),
        Case({"order": 2, "variant": "tab"}, 2, 2, "noise_ratio"),
        Case({"order": 3, "variant": "rhoab"}, 3, 2, "noise_ratio"),
        Case({"order": 3, "variant": "logrho"}, 3, 2, "lam"),
    ],
    reference=DEIS,
)
def deis(nodes: Nodes, *, order: int = 4, variant: str = "tab", lower_order_final: bool | None = None) -> Table:
    """DEIS: Adams–Bashforth on the noise prediction with a polynomial in VP time, noise/signal or its logarithm.

    Parameters
    ----------
    order : {1, …, 4}
        Number of outputs used; the paper's "tAB-k" uses k + 1.
    variant : {"tab", "rhoab", "logrho", "released"}
        The variable of the polynomial: time of the linear VP schedule (β from the published code), noise/signal
        (equal to `lms`), or its logarithm (diffusers; equal to `dpm` with variant "exact"). "released" is "tab"
        with the published code's rectangle rule, whose weights do not quite sum to 1 (by about 4e-5).
    lower_order_final : bool, optional
        Lower the order to …, 2, 1 over the last steps; default as published, for "logrho" only. A last step to
        noise 0 returns the data prediction.
    """
    check_order("deis", order, 1, 4)
    check_variant("deis", variant, DEIS_VARIANTS)
    lower = variant == "logrho" if lower_order_final is None else lower_order_final
    if variant == "logrho":
        return multistep(nodes, noise_steps(nodes), step_orders(nodes, order, lower), exponential_shape)
    rule = {"rhoab": lagrange, "tab": lagrange_in_vp_time, "released": released_tab}[variant]
    table = ratio_multistep(nodes, ratio_weights(nodes, order, lower, rule, to_data=True))
    return replace(table, frame="none: the released quadrature is coarse") if variant == "released" else table


def vp_time(ratio: Array) -> Array:
    """Time of the linear VP schedule that the released DEIS code fits to noise/signal in [0.002, 80] (its ε = 1e-3)."""
    return (np.sqrt(_BETA_MIN**2 + 2 * _BETA_SPAN * np.log1p(ratio**2)) - _BETA_MIN) / _BETA_SPAN


def lagrange_in_vp_time(ratio: Array, i: int, p: int) -> Array:
    """Weights of the polynomial in VP time through the last p noises, by Gauss–Legendre quadrature in that time."""
    weights = _vp_time_integral(ratio, i, p, _GAUSS_NODES, _GAUSS_WEIGHTS)
    return np.asarray(weights / weights.sum())


def released_tab(ratio: Array, i: int, p: int) -> Array:
    """As `lagrange_in_vp_time` by the released rule: 10 000 points with both ends, each of weight 1/10 000."""
    if p == 1:
        return np.ones(1)
    points = np.linspace(0.0, 1.0, 10_000)
    span = vp_time(ratio[i : i + 2])
    return _vp_time_integral(ratio, i, p, points, 1e-4) * (span[1] - span[0]) / (ratio[i + 1] - ratio[i])


def _vp_time_integral(ratio: Array, i: int, p: int, points: Array, point_weights: Array | float) -> Array:
    """∫ ℓ_j (d ratio/d time) over the unit step for every basis polynomial j."""
    known, ends = vp_time(ratio[i - np.arange(p)]), vp_time(ratio[i : i + 2])
    time = ends[0] + (ends[1] - ends[0]) * points
    growth = np.expm1(0.5 * _BETA_SPAN * time**2 + _BETA_MIN * time)
    slope = (growth + 1) * (_BETA_SPAN * time + _BETA_MIN) / (2 * np.sqrt(growth))
    others = [np.delete(known, j) for j in range(p)]
    basis = np.array(
        [np.prod([(time - b) / (a - b) for b in rest], axis=0) for a, rest in zip(known, others, strict=True)]
    )
    return np.asarray((basis.reshape(p, -1) * (point_weights * slope)).sum(axis=1))
