"""ODE inversion: the start noise from which a deterministic sampler draws a given image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..border import Model
from ..loop import run
from ..nodes import Nodes
from ..program import Program
from ..registry import build_table
from ..reversed_nodes import ReversedNodes
from ..run_state import Result
from ..table import Table


def inversion_table(nodes: Nodes, method: str = "ddim", *, fixed_point: int = 0, **options: Any) -> Table:
    """A table from the cleanest noisy node to the noisiest.

    Parameters
    ----------
    nodes : Nodes
        Of the sampler that shall be inverted.
    method : str
        A deterministic method; "ddim" is DDIM inversion, those of order p leave an error of order p.
    fixed_point : int ≥ 0
        With "ddim": this many times every step is taken again with the noise predicted at its noisy end, whose fixed
        point is the exact inverse of the DDIM step; 1 + fixed_point calls per step.
    options : of the method

    Raises
    ------
    ValueError
        A stochastic method, or fixed_point with another method than ddim.
    """
    if fixed_point < 0 or (fixed_point and (method != "ddim" or options)):
        raise ValueError(f"fixed_point={fixed_point!r} is not possible with {method!r}; it belongs to plain 'ddim'")
    reverse = ReversedNodes(nodes)
    if build_table(method, nodes, **options).stochastic:
        raise ValueError(f"method {method!r} draws noise and has no inverse flow; use invert_sde, or eta=0")
    return _fixed_point_table(reverse, fixed_point) if fixed_point else build_table(method, reverse, **options)


def invert_ode(
    nodes: Nodes,
    model: Model,
    x: Tensor,
    *,
    method: str = "ddim",
    fixed_point: int = 0,
    full: bool = False,
    **given: Any,
) -> Tensor | Result:
    """The state at the noisiest node from which the flow leads to `x` at the cleanest.

    Parameters
    ----------
    nodes, method, fixed_point : as in `inversion_table`
    model, x, full, given : as in `run`, but for the table's options; guidance is usually left out here

    Returns
    -------
    Tensor (B, ...), to be sampled on `nodes` again, or Result with full=True
    """
    return run(inversion_table(nodes, method, fixed_point=fixed_point), model, x, full=full, **given)


def _fixed_point_table(nodes: Nodes, iterations: int) -> Table:
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        clean, noisy = nodes.level(i), nodes.level(i + 1)
        carry = noisy.signal / clean.signal
        weight = noisy.noise - carry * clean.noise
        guess = carry * x + weight * program.query(x, i, "noise")
        for _ in range(iterations):
            guess = carry * x + weight * program.query(guess, i + 1, "noise")
        x = program.let(guess)
    return program.finish(x)
