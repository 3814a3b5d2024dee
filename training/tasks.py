"""What a network is trained to do: what its loss needs, how it is wrapped, how it is sampled.

The trainer knows nothing of paths, interpolants or bridges; it drives a `Task`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath
from pathline.samplers import WrappedModel, list_adaptive

from .adaptive_density import AdaptiveSchedule
from .conventions import StockScheduler, stock_scheduler, wrap_network
from .data import ImageSet
from .direction import loss_with_direction
from .losses import GaussianObjective


class Samples(NamedTuple):
    """One micro-batch, ready for the loss of a task.

    Attributes
    ----------
    data : Tensor (B, C, H, W)
    start : Tensor (B, C, H, W)
        The other end of the process: noise, or a degraded image.
    times : float64 Tensor (B,)
    conditions : dict
        Keyword arguments of the model.
    latent : Tensor (B, C, H, W), optional
        A further standard normal, for tasks that take one.
    """

    data: Tensor
    start: Tensor
    times: Tensor
    conditions: dict[str, Tensor]
    latent: Tensor | None = None


class Preparation(NamedTuple):
    """What a task may need of a run before its first step.

    Attributes
    ----------
    folder : Path
        Of the run.
    data : ImageSet
    device : torch.device
    seed : int
    first : bool
        Whether this process is the one that writes files.
    wait : callable
        Returns when all processes have called it.
    say : callable
        Shows a sentence.
    """

    folder: Path
    data: ImageSet
    device: torch.device
    seed: int
    first: bool
    wait: Callable[[], None]
    say: Callable[[str], None]


class Task(ABC):
    """What a network is trained to do.

    Attributes
    ----------
    path : GaussianPath, StochasticInterpolant or None
        On which its samples are drawn; None where only levels are known.
    prediction : str
        What the model of `wrap` returns.
    title : str
        In words, for the first line of a run.
    takes_latent : bool
        Whether the loss needs noise besides the start.
    takes_noise : bool
        Whether samplers that add noise of their own are right.
    adapts : bool
        Whether `learn` wants to see the losses.
    """

    path: Any
    prediction: str
    title: str
    takes_latent: bool = False
    takes_noise: bool = True
    adapts: bool = False

    @property
    @abstractmethod
    def interval(self) -> tuple[float, float]:
        """Times on which the loss is bounded."""

    @abstractmethod
    def times(self, uniforms: Tensor) -> Tensor:
        """Training times for uniforms in (0, 1), float64."""

    @abstractmethod
    def wrap(self, network: Callable[..., Tensor]) -> Any:
        """The model of a network in its own convention, for `losses` and for `pathline.samplers.sample`."""

    @abstractmethod
    def losses(self, model: Any, samples: Samples) -> Tensor:
        """Loss of each sample, (B,), of a model from `wrap`."""

    @abstractmethod
    def level(self, t: float) -> str:
        """The coefficients of the process at a time, in words."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """What `load_pipeline` needs of the task, for JSON."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The objective, for JSON."""

    def sampling(self, method: str | None, nfe: int) -> dict[str, Any]:
        """Arguments of `sample` for at most `nfe` calls with a method; None stands for one that suits."""
        return {"method": method, "nfe": nfe}

    def begin(self, start: Tensor, noise: Tensor) -> Tensor:
        """Where `sample` begins, for a start as in training and further noise; both (B, ...)."""
        return start * float(self.path.noise(0.0))

    def prepare(self, run: Preparation) -> None:
        """Make or read what the loss needs besides the network; called once, before the first step or a resume's."""
        return

    def stock(self) -> StockScheduler | None:
        """The scheduler of diffusers that samples such a network, if there is one."""
        return None

    def learn(self, times: Tensor, losses: Tensor) -> None:
        """Take in the times and losses of all samples of a step, on all processes the same; only if it `adapts`."""
        raise NotImplementedError(f"{type(self).__name__} has nothing to learn from its losses")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep, for JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises
        ------
        ValueError
            If it is not what this task keeps.
        """
        if state:
            raise ValueError(f"a checkpoint holds a state, {sorted(state)}, that this run has no use for")


def flow_sampling(method: str | None, nfe: int) -> dict[str, Any]:
    """Arguments of `sample` for a flow that does not start at noise: equal steps of time, by default Heun's.

    Other defaults may take the start for a standard normal, such as those with an analytic first step.
    """
    given: dict[str, Any] = {"method": method or ("heun" if nfe > 1 else "euler"), "nfe": nfe}
    return given if method in list_adaptive() else {**given, "grid": "time"}


class GaussianTask(Task):
    """Regression on a Gaussian path.

    Parameters
    ----------
    objective : GaussianObjective
    convention : str
        How the network's label and output relate to the path.
    sigma_data : float
        For the convention "edm".
    direction_weight : float
        Share of the direction of the velocity; see `loss_with_direction`.
    schedule : AdaptiveSchedule, optional
        Takes the place of the objective's time density, and follows the losses.
    image_start : bool
        Whether the flow starts at an image, not at noise: then it is followed, and nothing may be concluded from the
        path about the law of its states.

    Raises
    ------
    ValueError
        If the schedule does not go with the objective's weight.
    """

    def __init__(
        self,
        objective: GaussianObjective,
        convention: str,
        sigma_data: float = 0.5,
        direction_weight: float = 0.0,
        schedule: AdaptiveSchedule | None = None,
        image_start: bool = False,
    ) -> None:
        self._convention, self._sigma_data, self._direction = convention, sigma_data, direction_weight
        self._schedule = schedule
        self._image_start, self.takes_noise = image_start, not image_start
        self.objective = objective if schedule is None else schedule.applied_to(objective)
        self.adapts = schedule is not None
        self.path: GaussianPath = objective.path
        self.prediction = objective.prediction
        self.title = f"{objective.prediction} on path {objective.path.name}"

    @property
    def interval(self) -> tuple[float, float]:
        """That of the objective, and of the bins of an adaptive schedule."""
        low, high = self.objective.interval
        if self._schedule is None:
            return low, high
        ends = torch.tensor([self._schedule.low, self._schedule.high], dtype=torch.float64)
        first, last = self.path.time_at(0.5 * ends).tolist()
        return max(low, first), min(high, last)

    def times(self, uniforms: Tensor) -> Tensor:
        """Training times of the present density."""
        return self.objective.times(uniforms)

    def wrap(self, network: Callable[..., Tensor]) -> WrappedModel:
        """The network in pathline's convention."""
        return wrap_network(network, self.path, self.prediction, self._convention, self._sigma_data)

    def losses(self, model: Any, samples: Samples) -> Tensor:
        """The objective, and the direction of the velocity."""
        data, start, times, conditions, _ = samples
        return loss_with_direction(self.objective, self._direction, model, data, start, times, conditions)

    def level(self, t: float) -> str:
        """Signal, noise and log-SNR."""
        path = self.path
        return (
            f"signal {float(path.signal(t)):.4g}, noise {float(path.noise(t)):.4g}, "
            f"log-SNR {2 * float(path.lam(t)):.3g}"
        )

    def sampling(self, method: str | None, nfe: int) -> dict[str, Any]:
        """From an image `flow_sampling`; from noise any method of `sample`."""
        return flow_sampling(method, nfe) if self._image_start else super().sampling(method, nfe)

    def card(self) -> dict[str, Any]:
        """Path, prediction and convention."""
        return {
            "path": self.path.config(),
            "prediction": self.prediction,
            "convention": self._convention,
            "sigma_data": self._sigma_data,
        }

    def config(self) -> dict[str, Any]:
        """The objective with its present density."""
        return self.objective.config()

    def stock(self) -> StockScheduler | None:
        """The scheduler for path, prediction and convention."""
        return stock_scheduler(self.path, self.prediction, self._convention, self._sigma_data)

    def learn(self, times: Tensor, losses: Tensor) -> None:
        """Let the schedule follow the losses."""
        assert self._schedule is not None
        self._schedule.update(self.objective, times, losses)
        self.objective = self._schedule.applied_to(self.objective)

    def state_dict(self) -> dict[str, Any]:
        """That of the schedule."""
        return {} if self._schedule is None else self._schedule.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the schedule."""
        if self._schedule is None:
            super().load_state_dict(state)
        else:
            self._schedule.load_state_dict(state)
            self.objective = self._schedule.applied_to(self.objective)
