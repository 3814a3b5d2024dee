"""Averages of a network's weights over training, the weights that are sampled and saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .tensor_files import save_tensors

WEIGHTS_FILE = "ema.safetensors"


class NetworkAverage(ABC):
    """An average of the parameters of a network, kept beside it."""

    @property
    @abstractmethod
    def decay(self) -> float:
        """Decay of the latest update."""

    @abstractmethod
    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's present weights."""

    @abstractmethod
    def copy_to(self, network: nn.Module) -> None:
        """Overwrite the network's weights by the average."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the average into the folder of a checkpoint."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote; ValueError if it belongs to a network with other weights."""

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Let the network have the averaged weights within the block, in evaluation mode."""
        training = network.training
        own = [parameter.detach().clone() for parameter in network.parameters()]
        self.copy_to(network)
        network.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(network.parameters(), own, strict=True):
                    parameter.copy_(value)
            network.train(training)


class WeightAverage(NetworkAverage):
    """Exponential moving average of the parameters of a network, kept beside it.

    The decay warms up as 1 - (1 + k / inv_gamma)^-power after k updates and stays at most `max_decay`
    (diffusers' EMAModel does the arithmetic). Buffers are not averaged.

    Parameters
    ----------
    network : nn.Module
        Whose weights are averaged; the average begins as a copy.
    max_decay : float in [0, 1]
    inv_gamma, power : float > 0
    """

    def __init__(
        self, network: nn.Module, max_decay: float = 0.9999, inv_gamma: float = 1.0, power: float = 0.75
    ) -> None:
        from diffusers.training_utils import EMAModel

        if not 0.0 <= max_decay <= 1.0:
            raise ValueError(f"ema_max_decay must lie in [0, 1], got {max_decay}")
        if inv_gamma <= 0 or power <= 0:
            raise ValueError(f"ema_inv_gamma and ema_power must be above 0, got {inv_gamma} and {power}")
        self._names = [name for name, _ in network.named_parameters()]
        self._average = EMAModel(
            network.parameters(),
            decay=max_decay,
            use_ema_warmup=True,
            inv_gamma=inv_gamma,
            power=power,
            foreach=True,
        )

    @property
    def updates(self) -> int:
        """Number of updates so far."""
        return int(self._average.optimization_step)

    @property
    def decay(self) -> float:
        """Decay of the latest update; 0 before and at the first, which copies."""
        return float(self._average.cur_decay_value or 0.0)

    def update(self, network: nn.Module) -> None:
        """Move the average towards the network's present weights."""
        self._average.step(network.parameters())

    def copy_to(self, network: nn.Module) -> None:
        """Overwrite the network's weights by the average."""
        self._average.copy_to(network.parameters())

    def save(self, folder: Path) -> None:
        """Write the average as safetensors into `folder`."""
        tensors = dict(zip(self._names, self._average.shadow_params, strict=True))
        save_tensors(folder / WEIGHTS_FILE, tensors, {"updates": str(self.updates)})

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the file belongs to a network with other weights.
        """
        from safetensors import safe_open

        with safe_open(folder / WEIGHTS_FILE, framework="pt") as content:
            updates = int(content.metadata()["updates"])
            stored = set(content.keys())
            if stored != set(self._names):
                odd = sorted(stored.symmetric_difference(self._names))[:3]
                raise ValueError(f"{folder / WEIGHTS_FILE} belongs to another network: {odd} differ")
            for name, value in zip(self._names, self._average.shadow_params, strict=True):
                value.copy_(content.get_tensor(name))
        self._average.optimization_step = updates
        self._average.cur_decay_value = self._average.get_decay(updates)
