"""Steps in noise/signal along the noise prediction, and the data steps that replace them next to λ = ±∞."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..nodes import Nodes
from ..numerics import Array
from ..program import Linear, Program, dot
from ..table import Table


def needs_data_step(nodes: Nodes, i: int) -> bool:
    """True where step i starts at signal 0, where noise/signal is infinite, or ends at noise 0."""
    return bool(nodes.signal[i] == 0.0 or nodes.noise[i + 1] == 0.0)


def data_step(program: Program, nodes: Nodes, i: int, x: Linear) -> tuple[Linear, Linear]:
    """(next state, noise at node i) of a first-order data step: the one finite step from signal 0 or to noise 0."""
    data = program.query(x, i)
    carry = nodes.noise[i + 1] / nodes.noise[i]
    noise = (x - nodes.signal[i] * data) / nodes.noise[i]
    return program.let(carry * x + (nodes.signal[i + 1] - carry * nodes.signal[i]) * data), noise


def ratio_step(program: Program, nodes: Nodes, i: int, x: Linear, noise: Linear) -> Linear:
    """x'/signal' = x/signal + (ratio' − ratio)·noise with ratio = noise/signal."""
    carry = nodes.signal[i + 1] / nodes.signal[i]
    return program.let(carry * x + (nodes.noise[i + 1] - carry * nodes.noise[i]) * noise)


def ratio_multistep(nodes: Nodes, weights: Iterable[Sequence[float] | Array | None]) -> Table:
    """Multistep along Σ_j weights_ij·ε_{i−j}, newest first; None asks for a data step."""
    program = Program(nodes)
    x, history = program.state, list[Linear]()
    for i, w in enumerate(weights):
        if w is None:
            x, noise = data_step(program, nodes, i, x)
            history.insert(0, noise)
        else:
            history.insert(0, program.query(x, i, "noise"))
            x = ratio_step(program, nodes, i, x, dot(w, history))
    return program.finish(x)
