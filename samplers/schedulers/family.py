"""What a family of models (flow, or noise schedule with betas) tells a scheduler about levels and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pathline.interpolants import GaussianPath

from ..grids import grid_info, make_nodes
from ..nodes import Level, Nodes
from ..numerics import Array
from .arguments import Request
from .settings import Settings

Singles = npt.NDArray[np.float32]
"""float32, as pipelines see timesteps and sigmas."""

PREDICTIONS = {"epsilon": "noise", "sample": "data", "v_prediction": "v", "flow_prediction": "velocity"}
FINAL_TYPES = ("zero", "sigma_min")
_SAME_LEVEL = 1e-6  # sigmas assigned in place come back in float32


@dataclass(frozen=True)
class Schedule:
    """Where a run goes.

    Attributes
    ----------
    nodes : Nodes
        In path time; the first `len(labels)` of them are the given ones.
    labels : float64 array or None
        Time labels that the caller fixed for the nodes before the end; None where they follow from the level.
    nominal : bool
        These labels are those of the spacing and all but the levels' own; other labels keep their own level.
    idle_end : bool
        One more call at the last node follows, over a step of length zero (terminal sigma = last sigma).
    """

    nodes: Nodes
    labels: Array | None = None
    nominal: bool = False
    idle_end: bool = False


class Family(ABC):
    """Levels, labels and the sign convention of the networks behind one scheduler config."""

    path: GaussianPath
    prediction: str
    sign: float = 1.0
    """Factor that turns a network's output into pathline's `prediction`."""
    train_steps: int
    clean_sigma: float = 0.0
    """Public sigma of clean data."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        """Never changes, so copies of a scheduler share it."""
        return self

    @abstractmethod
    def schedule(self, request: Request, settings: Settings) -> Schedule:
        """Nodes and labels of a request."""

    @abstractmethod
    def level(self, sigma: float) -> tuple[float, float, float]:
        """(signal, noise, path time) of a public sigma."""

    @abstractmethod
    def sigma(self, level: Level) -> float:
        """Public sigma of a level."""

    @abstractmethod
    def label(self, level: Level) -> float:
        """Time label of a level, as the network was trained with."""

    @abstractmethod
    def training_sigmas(self, shift: float) -> Array:
        """Public sigmas of all N training levels, noisiest first."""

    def timesteps(self, sigmas: Singles, labels: Array) -> Singles:
        """Public float32 timesteps of calls at these public float32 sigmas, whose labels nobody fixed."""
        return labels.astype(np.float32)

    @abstractmethod
    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) at timesteps of any shape, as float64 tensors (float32 on MPS)."""

    @abstractmethod
    def mix(self, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """(signal, noise) of public sigmas."""

    @abstractmethod
    def velocity(self, data: Tensor, noise: Tensor, point: tuple[Tensor, Tensor]) -> Tensor:
        """Training target of velocity (flow) or v (betas) networks at `point` = (signal, noise)."""

    def call_labels(self, schedule: Schedule, levels: Sequence[Level]) -> Array:
        """Labels of network calls at these levels; between labelled nodes their own, moved as at the nodes."""
        own = np.array([self.label(level) for level in levels])
        if schedule.labels is None:
            return own
        nodes, count = schedule.nodes, len(schedule.labels)
        moved = schedule.labels - np.array([self.label(nodes.level(k)) for k in range(count)])
        return own + np.interp([level.time for level in levels], nodes.time[:count], moved)

    def with_terminal(self, schedule: Schedule, sigma: float) -> Schedule:
        """The schedule with another terminal sigma.

        Raises
        ------
        ValueError
            It lies above the sigma of the last call.
        """
        nodes = schedule.nodes if schedule.idle_end else schedule.nodes.part(0, schedule.nodes.steps - 1)
        closed = self.closed(nodes.signal, nodes.noise, nodes.time, schedule.labels, sigma)
        return replace(closed, nominal=schedule.nominal)

    def closed(self, signal: Array, noise: Array, time: Array, labels: Array | None, end: float) -> Schedule:
        """Levels of the calls, closed by the terminal public sigma `end`."""
        end_signal, end_noise, end_time = self.level(end)
        fall = noise[-1] * end_signal - end_noise * signal[-1]
        slack = _SAME_LEVEL * (noise[-1] * end_signal + end_noise * signal[-1])
        if abs(fall) <= slack:
            if len(signal) < 2:
                raise ValueError(f"one step from sigma {end:g} to the same terminal sigma leaves nothing to do")
            return Schedule(self.nodes(signal, noise, time), labels, idle_end=True)
        if fall < 0:
            raise ValueError(f"the terminal sigma {end:g} is noisier than the last step's sigma; it must not be")
        closed = (np.append(signal, end_signal), np.append(noise, end_noise), np.append(time, end_time))
        return Schedule(self.nodes(*closed), labels)

    def nodes(self, signal: Array, noise: Array, time: Array) -> Nodes:
        """Nodes on this family's path."""
        return Nodes(signal, noise, time, self.path)

    def on_grid(self, settings: Settings, steps: int) -> Schedule:
        """Nodes on the grid that the settings name."""
        grid = settings.grid
        assert grid is not None
        calls = None if settings.table is None else settings.table.evaluations  # an analytic first step needs none
        if not isinstance(grid, str) and steps not in (len(grid) - 1, calls):
            raise ValueError(
                f"the grid in the scheduler's config has {len(grid) - 1} steps, but {steps} were asked for; "
                f"call the pipeline with num_inference_steps={calls or len(grid) - 1}"
            )
        if not isinstance(grid, str):
            return Schedule(make_nodes(self.path, grid, **settings.grid_options))
        options = grid_info(grid).options_for(settings.method, settings.options, settings.grid_options)
        return Schedule(make_nodes(self.path, grid, steps, **options))


def final_type(config: Any) -> str:
    """The config's `final_sigmas_type`, checked."""
    kind = config.get("final_sigmas_type", "zero")
    if kind not in FINAL_TYPES:
        raise ValueError(f"final_sigmas_type={kind!r} is not possible; allowed: {', '.join(FINAL_TYPES)}")
    return str(kind)


def wide(timesteps: Tensor) -> Tensor:
    """As float64, or float32 on devices without it."""
    return timesteps.to(torch.float32 if timesteps.device.type == "mps" else torch.float64)
