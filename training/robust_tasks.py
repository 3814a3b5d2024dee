"""Wrong labels (TDSM) and biased data (TIW-DSM) in the trainer: Gaussian tasks with a guide that is trained first."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .biased_data import BiasedDataObjective, discrimination_loss
from .data import ImageSet
from .guides import GUIDE_FILE, Drawn, Guide, fit_guide, load_guide, new_guide, read_settings
from .losses import GaussianObjective
from .noisy_labels import NoisyLabelObjective, transition_loss
from .robust_data import JoinedSet, transition_matrix
from .tasks import GaussianTask, Preparation, Samples

STEPS = {"classifier": 1000, "discriminator": 200}
"""Steps of a guide by default; a discriminator that is trained for long knows its few reference images by heart."""
_SEED = 7919  # added to that of the run: a guide sees other noises than the network


@dataclass(frozen=True)
class GuideSource:
    """Where a guide comes from.

    Parameters
    ----------
    source : str, optional
        A trained one: its file, or the folder of the run that made it. By default it is trained first.
    steps : int, optional
        Of its training.
    flip : bool
        Whether images are mirrored at random.
    """

    source: str | None = None
    steps: int | None = None
    flip: bool = False


class GuidedTask(GaussianTask):
    """A Gaussian task whose loss asks a guide.

    Parameters
    ----------
    objective, convention, sigma_data
        As of `GaussianTask`.
    origin : GuideSource

    Raises
    ------
    ValueError
        If a guide is given that cannot be read or is not for this path.
    """

    kind: str

    def __init__(self, objective: GaussianObjective, convention: str, sigma_data: float, origin: GuideSource) -> None:
        super().__init__(objective, convention, sigma_data)
        self._origin, self._spread = origin, sigma_data
        self._guide: Guide | None = None
        if origin.source is not None:
            self._check_given(_file_of(origin.source))

    def _check_given(self, file: Path) -> None:
        settings = read_settings(file)
        wanted = {"kind": self.kind, "path": self.path.config()}
        for key, value in wanted.items():
            if settings.get(key) != value:
                raise ValueError(
                    f"guide_from {file} does not suit: its {key} is {settings.get(key)!r}, this run needs {value!r}"
                )

    @property
    def guide(self) -> Guide:
        """The guide, once `prepare` has made or read it."""
        if self._guide is None:
            raise RuntimeError("the guide is there after prepare()")
        return self._guide

    def prepare(self, run: Preparation) -> None:
        """Read the guide, or train it if the run's folder does not hold it yet.

        Raises
        ------
        ValueError
            If the file there, or the one given, was made for another run.
        """
        outputs = self.outputs(run.data)
        if self._origin.source is not None:
            file = _file_of(self._origin.source)
        else:
            file = run.folder / GUIDE_FILE
            if run.first and not file.is_file():
                self._train(file, run, outputs)
            run.wait()
        settings = read_settings(file)
        expected = {"shape": list(run.data.shape), "outputs": outputs, "kind": self.kind, "path": self.path.config()}
        if self._origin.source is None:
            expected |= self._about(run)
        for key, value in expected.items():
            if settings.get(key) != value:
                raise ValueError(
                    f"the guide {file} was made for another run: its {key} is {settings.get(key)!r}, this one needs "
                    f"{value!r}; remove the file to train it anew"
                )
        self._guide = load_guide(file, run.device)

    def _about(self, run: Preparation) -> dict[str, Any]:
        """How the guide is trained, beside its settings."""
        return {
            "kind": self.kind,
            "steps": self._origin.steps or STEPS[self.kind],
            "seed": run.seed,
            "images": len(run.data),
            "flip": self._origin.flip,
        }

    def _train(self, file: Path, run: Preparation, outputs: int) -> None:
        about, seed = self._about(run), run.seed + _SEED
        run.say(f"training the {self.kind} of noised images first, {about['steps']} steps")
        guide = new_guide(self.path, run.data.shape, outputs, self.kind == "classifier", self._spread, seed)
        draw = self.draw(run.data)
        given = {"steps": about["steps"], "seed": seed, "device": run.device}
        loss = fit_guide(guide, self._flipped(draw), self.guide_loss(run.data), self.times, **given)
        guide.save(file, about)
        run.say(f"{self.kind} of noised images: loss {loss:.4g}, saved {file}")

    def _flipped(self, draw: Drawn) -> Drawn:
        if not self._origin.flip:
            return draw

        def mirrored(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
            images, targets = draw(generator, count)
            flip = torch.rand(len(images), generator=generator) < 0.5
            return torch.where(flip[:, None, None, None], images.flip(-1), images), targets

        return mirrored

    @abstractmethod
    def outputs(self, data: ImageSet) -> int:
        """Outputs of the guide."""

    @abstractmethod
    def draw(self, data: ImageSet) -> Drawn:
        """How training images of the guide are drawn."""

    @abstractmethod
    def guide_loss(self, data: ImageSet) -> Any:
        """Loss of the guide, (logits, targets) -> (B,)."""


class NoisyLabelTask(GuidedTask):
    """Labels that are seen through a transition matrix (TDSM, Na et al. 2024).

    Parameters
    ----------
    label_noise : str
        Rate or file, as of `transition_matrix`.
    objective, convention, sigma_data, origin
        As of `GuidedTask`.
    """

    kind = "classifier"

    def __init__(self, label_noise: str, *given: Any) -> None:
        super().__init__(*given)
        self._label_noise = label_noise
        self._with_null: Tensor | None = None
        self.title += f", labels seen through {label_noise}"

    def prepare(self, run: Preparation) -> None:
        """Also make the matrix."""
        super().prepare(run)
        matrix = transition_matrix(self._label_noise, self.outputs(run.data))
        # "no label" is a class of its own that is always seen as it is: the loss of such samples is the plain one
        self._with_null = torch.block_diag(matrix, torch.ones(1, 1, dtype=matrix.dtype)).to(run.device)

    def outputs(self, data: ImageSet) -> int:
        """One for each class."""
        return len(data.classes)

    def draw(self, data: ImageSet) -> Drawn:
        """Any images, with the labels that are seen."""

        def drawn(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
            batch = data.__getitems__(torch.randint(len(data), (count,), generator=generator).tolist())
            assert batch.labels is not None
            return batch.images, batch.labels

        return drawn

    def guide_loss(self, data: ImageSet) -> Any:
        """That of the labels that are seen."""
        matrix = transition_matrix(self._label_noise, len(data.classes))
        return lambda logits, seen: transition_loss(logits, seen, matrix)

    def losses(self, model: Any, samples: Samples) -> Tensor:
        """Regression of the combination of the classes' predictions."""
        assert self._with_null is not None
        objective = NoisyLabelObjective(self.objective, self._with_null)
        seen = samples.conditions["class_labels"]
        return objective(model, self._classes, samples.data, samples.start, samples.times, seen)

    def _classes(self, x: Tensor, t: Tensor) -> Tensor:
        logits = self.guide(x.float(), t)
        return torch.cat([logits, logits.new_zeros(len(logits), 1)], 1)

    def config(self) -> dict[str, Any]:
        """With the name of the matrix."""
        return {**super().config(), "label_noise": self._label_noise}


class BiasedDataTask(GuidedTask):
    """Biased data beside reference images of right proportions (TIW-DSM, Kim et al. 2024)."""

    kind = "discriminator"
    _share = 0.0

    def prepare(self, run: Preparation) -> None:
        """Also note the share of the reference images."""
        assert isinstance(run.data, JoinedSet)
        super().prepare(run)
        self._share = run.data.share

    def outputs(self, data: ImageSet) -> int:
        """The logit of "reference"."""
        return 1

    def draw(self, data: ImageSet) -> Drawn:
        """Half reference images, half biased ones."""
        assert isinstance(data, JoinedSet)

        def drawn(generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
            half = count // 2
            images = [
                part.__getitems__(torch.randint(len(part), (half,), generator=generator).tolist()).images
                for part in (data.reference, data.biased)
            ]
            return torch.cat(images), torch.arange(2 * half) < half

        return drawn

    def guide_loss(self, data: ImageSet) -> Any:
        """Of telling the two sets apart."""
        return lambda logits, is_reference: discrimination_loss(logits[:, 0], is_reference)

    def losses(self, model: Any, samples: Samples) -> Tensor:
        """Weighted by the ratio of densities, with its gradient in the target."""
        objective = BiasedDataObjective(self.objective, self._share)
        given = (samples.data, samples.start, samples.times, samples.conditions)
        return objective(model, lambda x, t: self.guide(x.float(), t)[:, 0], *given)

    def config(self) -> dict[str, Any]:
        """With the share of the reference images."""
        return {**super().config(), "reference_share": self._share}


def _file_of(source: str) -> Path:
    place = Path(source)
    return place / GUIDE_FILE if place.is_dir() else place
