"""Networks of other conventions as pathline models (x, t) -> output, t = 0 noise and 1 data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, EDMPath, GaussianPath, LinearPath, unknown_name

Network = Callable[..., Any]

_DIFFUSERS_PREDICTIONS = {
    "epsilon": "noise",
    "sample": "data",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


_ZERO_SNR_FLOOR = 2.0**-24
"""What diffusers puts in the place of a terminal alphas_cumprod of 0."""


class WrappedModel:
    """A network with everything `sample` must know about it.

    Parameters
    ----------
    network : callable (x, label, **kwargs) -> tensor, tuple, or object with `.sample`
    path : GaussianPath
    prediction : what `__call__` returns, one of pathline's predictions
    label : function of t (B,) giving what the network expects as time
    sign : factor of the output, −1 for networks that predict noise − data
    dtype : network's dtype; inputs are cast to it and outputs back
    """

    def __init__(
        self,
        network: Network,
        path: GaussianPath,
        prediction: str,
        label: Callable[[Tensor], Tensor] = lambda t: t,
        sign: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.network = network
        self.path = path
        self.prediction = prediction
        self.label = label
        self.sign = sign
        self.dtype = dtype

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Network output in pathline's convention, in x's dtype; x (B, ...), t (B,)."""
        label = self.label(t)
        output = _tensor(self.network(x if self.dtype is None else x.to(self.dtype), label, **kwargs))
        output = output if output.dtype == x.dtype else output.to(x.dtype)
        return output if self.sign == 1.0 else output * self.sign


def scaled_labels(network: Network, path: GaussianPath, prediction: str, scale: float = 1000.0) -> WrappedModel:
    """A network that expects scale·t, t running from noise 0 to data 1."""
    return WrappedModel(network, path, prediction, lambda t: t * scale)


def reversed_flow(network: Network, scale: float = 1000.0, path: GaussianPath | None = None) -> WrappedModel:
    """A flow network in the diffusers convention: label scale·(1 − t), output noise − data."""
    return WrappedModel(network, path or LinearPath(), "velocity", lambda t: (1.0 - t) * scale, sign=-1.0)


def discrete_labels(network: Network, path: DiscretePath, prediction: str = "noise") -> WrappedModel:
    """A network trained on the integer levels of a discrete schedule (index 0 = least noise)."""
    return WrappedModel(network, path, prediction, lambda t: training_index(t, path.steps))


def training_index(t: Tensor, steps: int) -> Tensor:
    """N(1 − t) − 1, snapped to the integer it is meant to be; fractional between the training levels."""
    index = steps * (1.0 - t) - 1.0
    whole = torch.round(index)
    return torch.where((index - whole).abs() < 1e-3, whole, index).clamp_min(0.0)


def edm_preconditioned(network: Network, path: EDMPath | None = None, sigma_data: float = 0.5) -> WrappedModel:
    """EDM preconditioning around a raw network F(c_in·x, c_noise): a data prediction (Karras et al. 2022, Table 1)."""
    path = path or EDMPath()

    def denoiser(x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        level = sigma.reshape(-1, *([1] * (x.ndim - 1)))
        total = level**2 + sigma_data**2
        raw = _tensor(network(x / total.sqrt(), sigma.log() / 4, **kwargs))
        return x * (sigma_data**2 / total) + raw * (level * sigma_data / total.sqrt())

    return WrappedModel(denoiser, path, "data", path.noise)


def from_diffusers(network: Network, scheduler: Any) -> WrappedModel:
    """A diffusers network with the scheduler it was trained with, as a pathline model.

    Parameters
    ----------
    network : a diffusers model (UNet2DModel, DiT, …) or any callable network(x, timestep, **kwargs)
    scheduler : a diffusers scheduler of the beta family (noise, v or data prediction) or of the flow family

    Returns
    -------
    WrappedModel
        Beta family: DiscretePath with the scheduler's alphas_cumprod, label the training index N(1 − t) − 1.
        Flow family: LinearPath, label N(1 − t) (N·t with invert_sigmas), velocity with pathline's sign.

    Raises
    ------
    ValueError
        The scheduler has neither betas nor flow sigmas, or an unknown prediction type.
    """
    config = getattr(scheduler, "config", None)
    if config is None:
        raise ValueError(f"scheduler must be a diffusers scheduler, got {type(scheduler).__name__}")
    dtype = getattr(network, "dtype", None)
    steps = int(config.get("num_train_timesteps", 1000))
    flow = is_flow(config, type(scheduler).__name__)
    kind = config.get("prediction_type", "flow_prediction" if flow else "epsilon")
    if kind not in _DIFFUSERS_PREDICTIONS:
        raise unknown_name("prediction_type", str(kind), _DIFFUSERS_PREDICTIONS)
    prediction = _DIFFUSERS_PREDICTIONS[kind]
    if flow:
        wrapped = _flow(network, prediction, float(steps), bool(config.get("invert_sigmas")))
    elif getattr(scheduler, "alphas_cumprod", None) is not None:
        path = DiscretePath(_decreasing(scheduler.alphas_cumprod.double().tolist()))
        wrapped = discrete_labels(network, path, prediction)
    else:
        raise ValueError(
            f"{type(scheduler).__name__} has neither alphas_cumprod nor flow sigmas; "
            "wrap the network yourself with edm_preconditioned or WrappedModel"
        )
    wrapped.dtype = dtype if isinstance(dtype, torch.dtype) else None
    return wrapped


def _flow(network: Network, prediction: str, steps: float, inverted: bool) -> WrappedModel:
    """Inverted schedules count the signal, and their networks predict data − noise."""
    if prediction == "velocity" and not inverted:
        return reversed_flow(network, steps)
    return WrappedModel(network, LinearPath(), prediction, lambda t: (t if inverted else 1.0 - t) * steps)


def _decreasing(powers: list[float]) -> tuple[float, ...]:
    """ᾱ, index 0 first, with a small number for a terminal 0 or for what diffusers puts in its place."""
    if powers[-1] <= 0.0 or (len(powers) > 1 and powers[-1] >= powers[-2]):
        powers = [*powers[:-1], min([_ZERO_SNR_FLOOR, *(0.25 * p for p in powers[-2:-1])])]
    return tuple(powers)


def is_flow(config: Any, class_name: str = "") -> bool:
    """True where a diffusers scheduler config describes a flow model."""
    return (
        class_name.startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample
