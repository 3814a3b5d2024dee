"""A Gaussian chain whose every kernel is exact, so that steering has nothing but its own error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import VPPath
from pathline.samplers import Nodes, Program, Table

VP = VPPath(beta_min=0.1, beta_max=20.0)


def vp_nodes(steps: int) -> Nodes:
    """Uniform times of the VP path down to 1e-3, and the clean end."""
    times = torch.linspace(0.0, 1.0 - 1e-3, steps, dtype=torch.float64)
    signal, noise = (c.numpy() for c in (VP.signal(times), VP.noise(times)))
    return Nodes(np.append(signal, 1.0), np.append(noise, 0.0), path=VP)


def exact_chain(steps: int) -> Table:
    """x' = c·x + √(1 − c²)·z with c the ratio of signals: the reverse of the noising process of N(0, 1) data.

    Of c·x a part is written as a multiple of the data prediction signal·x, as methods have it.
    """
    nodes = vp_nodes(steps)
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        keep, part = nodes.signal[i] / nodes.signal[i + 1], 0.5
        step = (keep - part * nodes.signal[i]) * x + part * program.query(x, i)
        x = program.let(step + float(np.sqrt(1.0 - keep**2)) * program.noise())
    return program.finish(x, frame="none: exact for N(0, 1) data", law="none: likewise")


def standard_normal(x: Tensor, t: Tensor) -> Tensor:
    """Data prediction of N(0, 1) data on the VP path."""
    return VP.signal(t.double()).to(x).reshape(-1, *([1] * (x.ndim - 1))) * x
