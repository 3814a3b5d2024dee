"""Nodes walked from data to noise: with them every deterministic method is its own inverse, to its order."""

from __future__ import annotations

import numpy as np

from .nodes import Nodes


class ReversedNodes(Nodes):
    """The nodes of a grid in reverse, cleanest first.

    Deterministic methods need nothing else than signed steps, so that their tables on these nodes invert the
    probability flow with the error that they sample with. Stochastic methods have no meaning here.

    Parameters
    ----------
    nodes : Nodes
        A last node of noise 0, from which only steps in time lead back, is left out.
    keep_clean : bool
        Keep it all the same.

    Raises
    ------
    ValueError
        Fewer than two noisy nodes, or nodes of a bridge.
    """

    def __init__(self, nodes: Nodes, *, keep_clean: bool = False) -> None:
        if nodes.is_bridge:
            raise ValueError("the nodes belong to a bridge; only Gaussian paths are walked back")
        stop = nodes.steps if nodes.ends_clean and not keep_clean else nodes.steps + 1
        if stop < 2:
            raise ValueError(f"{nodes!r} has {stop} node with noise; walking back needs two or more")
        order = np.arange(stop)[::-1]
        rates = nodes._given_rates and nodes.signal_rate is not None and nodes.noise_rate is not None
        super().__init__(
            nodes.signal[order],
            nodes.noise[order],
            nodes.time[order],
            nodes.path,
            nodes.signal_rate[order] if rates and nodes.signal_rate is not None else None,
            nodes.noise_rate[order] if rates and nodes.noise_rate is not None else None,
        )

    def _check_levels(self) -> None:
        if not (np.diff(self.lam) < 0).all():
            raise ValueError("reversed nodes must go from data to noise")

    def _check_direction(self, signal_rate: np.ndarray, noise_rate: np.ndarray) -> None:
        """Rates were checked on the nodes themselves."""
