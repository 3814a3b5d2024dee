"""What can be sampled: closed-form test beds, trained folders, and stock diffusers pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, GaussianPath, LinearPath, unknown_name
from pathline.samplers import ClassifierFree
from pathline.samplers.guidance import Place

from .files import digest, file_digest
from .settings import parse_spec

TRAIN_STEPS = 1000.0
_GOLDEN = 0.6180339887498949
BED_PREFIX = "bed:"
BED_OPTIONS = ("path", "prediction", "conditional")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".json")


@dataclass(frozen=True)
class DataSet:
    """Reference data of a source.

    Attributes
    ----------
    name : str
    samples : Tensor, shape (n, *shape)
    exact : (mean, covariance) or None
        Of the flattened law itself, where it is known.
    """

    name: str
    samples: Tensor
    exact: tuple[Any, Any] | None = None


@dataclass(frozen=True)
class Source:
    """A model with everything a sweep must know about it.

    Attributes
    ----------
    name, kind, identity : str
        Readable name, "bed" or "pipeline", and a hash of the weights or of the law.
    model : callable (x, t, **kwargs)
        In path time, with output ``prediction`` on ``path``.
    shape : tuple of int
        Of one sample.
    data : callable -> DataSet
        The reference it was made for.
    classes : int
        If positive, sample i gets a class that depends on i alone, through keyword ``label_key``.
    class_weights : tuple of float or None
        Shares of the classes in the data; None for equal ones.
    null_label : object
        Label of the unconditional branch under guidance; None where there is none.
    network : callable or None
        The diffusers side: network(x, label, **kwargs); None where no diffusers loop fits path and prediction.
    scheduler : callable or None
        Gives the configuration of the stock scheduler of ``network``.
    pipeline : callable or None
        Opens the diffusers pipeline whose own loop the scheduler runner calls.
    flow_only : bool
        Whether the model gives a flow between any two laws and no score: samplers that add noise are refused then.
    coupled : bool
        Whether noise and data were drawn together (couplings, reflow): the same, but it begins in pure noise.
    """

    name: str
    kind: str
    identity: str
    model: Callable[..., Tensor]
    path: GaussianPath
    prediction: str
    shape: tuple[int, ...]
    data: Callable[[], DataSet]
    classes: int = 0
    class_weights: tuple[float, ...] | None = None
    label_key: str = "labels"
    null_label: Any = None
    network: Any = None
    scheduler: Callable[[], Any] | None = None
    pipeline: Callable[[], Any] | None = None
    flow_only: bool = False
    coupled: bool = False

    def kwargs(self, indices: range, device: str = "cpu") -> dict[str, Any]:
        """Conditions of some global sample indices."""
        if not self.classes:
            return {}
        return {self.label_key: torch.tensor([self._label(i) for i in indices], device=device)}

    def _label(self, index: int) -> int:
        """Class of one sample: in turn for equal shares, else by the golden-ratio sequence, which keeps the shares."""
        if self.class_weights is None:
            return index % self.classes
        place, total = (index + 0.5) * _GOLDEN % 1.0, 0.0
        for label, weight in enumerate(self.class_weights):
            total += weight
            if place < total:
                return label
        return self.classes - 1

    @property
    def labels(self) -> str:
        """How classes are given out, in words for the protocol."""
        if not self.classes:
            return "none"
        return "by index, equal shares" if self.class_weights is None else "by index, shares of the data"

    def guidance(self, scale: float | None) -> ClassifierFree | None:
        """Classifier-free guidance of a scale.

        Raises
        ------
        ValueError
            If the source has no classes or no unconditional branch.
        """
        if scale is None:
            return None
        if not self.classes or self.null_label is None:
            raise ValueError(
                f"guidance {scale} needs a class-conditional source with an empty class, {self.name} is not"
            )
        return _NullLabel(scale, {self.label_key: self.null_label}, batched=False)

    def config(self) -> dict[str, Any]:
        """What enters the protocol."""
        return {
            "name": self.name,
            "kind": self.kind,
            "id": self.identity,
            "path": digest(self.path.config()),
            "prediction": self.prediction,
            "classes": self.classes,
        }


class _NullLabel(ClassifierFree):
    """Guidance whose empty label, one integer, is spread over the batch."""

    def branches(
        self, network: Any, x: Tensor, t: Tensor, kwargs: dict[str, Any], place: Place | None
    ) -> tuple[Tensor, Tensor]:
        free = {k: torch.full((len(x),), v, device=x.device) for k, v in self.unconditional.items()}
        return ClassifierFree(self.scale, free, self.batched).branches(network, x, t, kwargs, place)


def open_source(text: str, device: str = "cpu") -> Source:
    """Open what a sweep samples from.

    Parameters
    ----------
    text : str
        ``bed:<name>`` with options ``path``, ``prediction``, ``conditional`` (as in ``bed:mixture:path=vp``), a
        folder written by training, or a folder or hub name of a diffusers pipeline with one image network.
    device : str
        Where the network runs.

    Raises
    ------
    ValueError
        If it does not exist, is damaged or cannot be sampled from noise alone.
    """
    if text.startswith(BED_PREFIX):
        return _open_bed(text)
    from .pipelines import open_pipeline

    return open_pipeline(text, device)


def _open_bed(text: str) -> Source:
    from pathline.training.setup import make_path

    from .testbeds import draw, make_bed

    spec = parse_spec(text[len(BED_PREFIX) :])
    for key in spec.options:
        if key not in BED_OPTIONS:
            raise unknown_name("option of a test bed", key, BED_OPTIONS)
    bed = make_bed(spec.name)
    name = spec.options.get("path", "linear")
    path = make_path(name, {})
    prediction = spec.options.get("prediction", "velocity" if path.constant_rates else "data")
    model = bed.target.as_model(path, prediction)
    classes = bed.classes if spec.options.get("conditional", False) else 0
    mean, covariance = bed.target.mean.numpy(), bed.target.covariance.numpy()

    def data() -> DataSet:
        return DataSet(f"bed {bed.name}", draw(bed, 4096, seed=1), (mean, covariance))

    network = _diffusers_network(model, path, prediction)
    return Source(
        text,
        "bed",
        bed.identity,
        model,
        path,
        prediction,
        bed.target.shape,
        data,
        classes=classes,
        class_weights=bed.class_weights if classes else None,
        null_label=-1 if classes else None,
        network=network,
        scheduler=(lambda: _stock_config(path, prediction)) if network is not None else None,
    )


def _diffusers_network(model: Any, path: GaussianPath, prediction: str) -> Any:
    """The exact model as a diffusers network, on the two kinds of path whose levels a diffusers loop visits."""
    if isinstance(path, LinearPath) and prediction == "velocity":

        def flow(x: Tensor, label: Tensor, **kwargs: Any) -> Tensor:
            return -model(x, (1.0 - label / TRAIN_STEPS).to(x.dtype), **kwargs)

        return flow
    if isinstance(path, DiscretePath) and prediction in ("noise", "v", "data"):
        steps = path.steps

        def discrete(x: Tensor, label: Tensor, **kwargs: Any) -> Tensor:
            return model(x, (1.0 - (label + 1.0) / steps).to(x.dtype), **kwargs)

        return discrete
    return None


def _stock_config(path: GaussianPath, prediction: str) -> Any:
    """Configuration of the scheduler that diffusers itself would sample such a network with."""
    import diffusers

    from pathline.training import choose_convention, stock_scheduler

    stock = stock_scheduler(path, prediction, choose_convention(path, prediction))
    assert stock is not None
    return getattr(diffusers, stock.class_name)(**stock.settings).config


def network_identity(folder: Path) -> str:
    """Hash of all weights and configurations below a folder."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix in _WEIGHT_SUFFIXES]
    files = [f for f in files if not any(part.startswith("checkpoint-") for part in f.relative_to(folder).parts)]
    if not files:
        raise ValueError(f"folder {folder} holds no weights ({', '.join(_WEIGHT_SUFFIXES)})")
    return file_digest(files)
