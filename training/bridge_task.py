"""Bridges from a degraded image to the image, in the trainer and as models of the bridge samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import EDMPath, GaussianPath, StochasticInterpolant, VPPath, check_name
from pathline.samplers import Nodes, list_adaptive

from .bridge_levels import BridgeLevels
from .bridge_losses import BridgeObjective, bridge_objective
from .bridge_predictions import BridgePrediction
from .conventions import TRAIN_STEPS
from .densities import TimeDensity, UniformTime
from .tasks import Samples, Task
from .weights import LatentPower

_FROM_SOURCE = ("bridge-posterior", "consecutive-bridge", "dbim", "i2sb")
_REFERENCES: dict[str, tuple[type[GaussianPath], dict[str, float]]] = {
    "ddbm-vp": (VPPath, {"beta_min": 0.1, "beta_max": 2.1}),
    "ddbm-ve": (EDMPath, {"sigma_max": 80.0, "rho": 1.0}),
}
_OBJECTIVES = {"brownian": "matching", "i2sb": "i2sb", "bbdm": "bbdm", "resshift": "resshift"}
_METHODS = {
    "brownian": ("bridge-posterior", "time"),
    "ddbm-vp": ("dbim", "karras"),
    "ddbm-ve": ("dbim", "karras"),
    "i2sb": ("i2sb", None),
    "bbdm": ("bbdm", None),
    "resshift": ("resshift", None),
}
"""Sampler and grid of each bridge by default; those on levels have no grid but their levels."""
TRAINED_BRIDGES = tuple(_METHODS)


@dataclass(frozen=True)
class BridgeSettings:
    """A bridge by name, as it is stored.

    Parameters
    ----------
    name : {"brownian", "ddbm-vp", "ddbm-ve", "i2sb", "bbdm", "resshift"}
    parameters : mapping
        Those of `bridge_objective`; of ddbm also those of its reference path.
    prediction : str, optional
        Another bridge prediction than the published one.
    """

    name: str
    parameters: Mapping[str, Any]
    prediction: str | None = None

    def objective(self, weight: LatentPower | None = None, density: TimeDensity | None = None) -> BridgeObjective:
        """The objective; weight and density take the place of its own.

        Raises
        ------
        ValueError
            If something is unknown or not possible, or a network of this prediction cannot be sampled.
        """
        check_name("path of a bridge", self.name, TRAINED_BRIDGES)
        made = self._published()
        if self.prediction is not None:
            check_name("prediction of a bridge", self.prediction, BridgePrediction.names())
            made = replace(made, prediction=BridgePrediction.by_name(self.prediction))
        made = replace(made, density=density or UniformTime())
        if weight is not None:
            made = replace(made, weight=weight)
        first = made.coefficients(torch.tensor([0.0], dtype=torch.float64))
        scale, on_data, _, _ = made.prediction.relation(first)
        if not bool((scale / on_data).isfinite().all()):
            raise ValueError(
                f"prediction {made.prediction.name!r} does not give the data at the source of the bridge {self.name!r},"
                " where its sampler begins; choose data, displacement, difference, drift or preconditioned"
            )
        return made

    def _published(self) -> BridgeObjective:
        if self.name not in _REFERENCES:
            return bridge_objective(_OBJECTIVES[self.name], **self.parameters)
        kind, usual = _REFERENCES[self.name]
        known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        own = {key: value for key, value in self.parameters.items() if key in known}
        rest = {key: value for key, value in self.parameters.items() if key not in known}
        return bridge_objective("ddbm", reference=kind(**{**usual, **own}), **rest)


class BridgeModel:
    """A trained bridge as a data prediction (x, t, source=..., **conditions) for `pathline.samplers.sample`.

    On levels t is a training index, as the labels of `nodes` are; else a time in [0, 1].

    Parameters
    ----------
    network : callable (x, label, **kwargs) -> output
        Its label is the training index, or 1000 (1 - t).
    settings : BridgeSettings

    Attributes
    ----------
    path : StochasticInterpolant or None
        The bridge; None on levels.
    prediction : "data"
    """

    prediction = "data"

    def __init__(self, network: Callable[..., Tensor], settings: BridgeSettings) -> None:
        self.network = network
        self.settings = settings
        self.objective = settings.objective()
        bridge = self.objective.bridge
        self.levels = bridge if isinstance(bridge, BridgeLevels) else None
        self.path = bridge if isinstance(bridge, StochasticInterpolant) else None

    def raw(self, x: Tensor, label: Tensor, **kwargs: Any) -> Tensor:
        """Output of the network, at a time or a training index."""
        return self.network(x, label if self.path is None else (1.0 - label) * TRAIN_STEPS, **kwargs)

    def __call__(self, x: Tensor, t: Tensor, source: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Data prediction (B, ...).

        Raises
        ------
        ValueError
            Without a source.
        """
        if source is None:
            raise ValueError("a bridge needs its source beside the state (source, a tensor of the shape of x)")
        return self.objective.data_model(self.raw, source)(x, t, **kwargs)

    def sampling(self, nfe: int, method: str | None = None) -> dict[str, Any]:
        """Arguments of `sample` for at most `nfe` calls; by default the sampler of the published model.

        Raises
        ------
        ValueError
            If the method does not suit the bridge, or fewer than 2 calls are asked for.
        """
        usual, grid = _METHODS[self.settings.name]
        chosen = method or usual
        if chosen in list_adaptive():
            raise ValueError(f"method {chosen!r} chooses its own steps, which a bridge does not allow; try {usual!r}")
        if self.settings.name == "resshift" and chosen != usual:
            raise ValueError(f"method {chosen!r} does not suit 'resshift', which starts at noise; allowed: {usual!r}")
        if nfe < 2:
            raise ValueError(f"nfe={nfe!r} is not possible for a bridge; allowed: at least 2")
        if self.levels is None:
            return {"method": chosen, "grid": grid, "nfe": nfe}
        from_source = chosen in _FROM_SOURCE
        given: dict[str, Any] = {"method": chosen, "grid": self._nodes(min(nfe, len(self.levels)), from_source)}
        return {**given, "source_time": len(self.levels) - 1} if from_source else given

    def _nodes(self, calls: int, from_source: bool) -> Nodes:
        """Evenly spaced training levels and the data; the first level is left out where the source stands for it."""
        assert self.levels is not None
        index = torch.linspace(len(self.levels) - 1, 0, calls, dtype=torch.float64).round()[int(from_source) :]
        anchor, signal, noise = (entry.tolist() for entry in self.levels.at_index(index))
        return Nodes([*signal, 1.0], [*noise, 0.0], [*index.tolist(), 0.0], anchor=[*anchor, 0.0])

    def begin(self, source: Tensor, noise: Tensor) -> Tensor:
        """Where `sample` starts: the source, with ResShift's noise on it; both (B, ...)."""
        if self.settings.name != "resshift":
            return source
        assert self.levels is not None
        return source + float(self.levels.noise[0]) * noise


class BridgeTask(Task):
    """Bridge matching between a degraded image and the image.

    Parameters
    ----------
    settings : BridgeSettings
    weight : LatentPower, optional
        By default that of the published model.
    density : TimeDensity, optional
        Of the time; by default uniform.

    Raises
    ------
    ValueError
        As `BridgeSettings.objective`.
    """

    prediction = "data"
    takes_latent = True

    def __init__(
        self, settings: BridgeSettings, weight: LatentPower | None = None, density: TimeDensity | None = None
    ) -> None:
        self.settings = settings
        self.objective = settings.objective(weight, density)
        self._model = self.wrap(_no_network)
        self.path = self._model.path
        self.title = f"{self.objective.prediction.name} on the bridge {settings.name}"

    @property
    def interval(self) -> tuple[float, float]:
        """That of the objective."""
        return self.objective.interval

    def times(self, uniforms: Tensor) -> Tensor:
        """Those of the objective."""
        return self.objective.times(uniforms)

    def wrap(self, network: Callable[..., Tensor]) -> BridgeModel:
        """The data prediction that bridge samplers take."""
        return BridgeModel(network, self.settings)

    def losses(self, model: BridgeModel, samples: Samples) -> Tensor:
        """The objective, of the network's own output."""
        assert samples.latent is not None
        seen = {key: value for key, value in samples.conditions.items() if key != "source"}
        return self.objective(model.raw, samples.start, samples.data, samples.latent, samples.times, seen)

    def level(self, t: float) -> str:
        """Weights of source, data and noise."""
        anchor, signal, noise = (float(v) for v in self.objective.coefficients(torch.tensor(t, dtype=torch.float64)))
        return f"source {anchor:.4g}, signal {signal:.4g}, noise {noise:.4g}"

    def sampling(self, method: str | None, nfe: int) -> dict[str, Any]:
        """Those of the model."""
        return self._model.sampling(nfe, method)

    def begin(self, start: Tensor, noise: Tensor) -> Tensor:
        """That of the model."""
        return self._model.begin(start, noise)

    def card(self) -> dict[str, Any]:
        """The bridge by name."""
        return {"path": None, "prediction": "data", "convention": "bridge", "bridge": asdict(self.settings)}

    def config(self) -> dict[str, Any]:
        """The bridge and the parts of the objective."""
        objective = self.objective
        return {
            **asdict(self.settings),
            "prediction": objective.prediction.config(),
            "norm": objective.norm,
            "weight": asdict(objective.weight),
            "density": objective.density.config(),
            "interval": list(objective.interval),
        }


def _no_network(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError("this model has no network")
