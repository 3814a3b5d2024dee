"""Data whose labels are wrong or whose proportions are not those asked for: as they are, or made so for experiments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import unknown_name

from .data import ArraySet, Batch, FileSet, ImageSet
from .latents import LatentSet
from .noisy_labels import check_transition, corrupt_labels, symmetric_noise

_BIAS = ("classes", "kept", "reference")


def transition_matrix(label_noise: str, classes: int) -> Tensor:
    """p(label seen | class) from an option: a rate of symmetric noise, or a file; float64 (classes, classes).

    Parameters
    ----------
    label_noise : str
        A number in [0, 1), or a .npy, .json or .csv file of the matrix, a row for each class.
    classes : int

    Raises
    ------
    ValueError
        If it is neither, cannot be read, or is no such matrix for this number of classes.
    """
    try:
        rate = float(label_noise)
    except ValueError:
        matrix = _read_matrix(Path(label_noise))
    else:
        return symmetric_noise(classes, rate)
    if tuple(matrix.shape) != (classes, classes):
        raise ValueError(
            f"label_noise {label_noise} must be a matrix {classes}x{classes}, one row for each class of the data, got "
            f"{tuple(matrix.shape)}"
        )
    check_transition(matrix)
    return matrix


def _read_matrix(file: Path) -> Tensor:
    readers = {
        ".npy": lambda: np.load(file, allow_pickle=False),
        ".json": lambda: np.array(json.loads(file.read_text(encoding="utf-8")), dtype=np.float64),
        ".csv": lambda: np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2),
    }
    if file.suffix not in readers:
        raise ValueError(f"label_noise must be a rate in [0, 1), or a .npy, .json or .csv file, got {str(file)!r}")
    try:
        return torch.from_numpy(np.asarray(readers[file.suffix](), dtype=np.float64))
    except Exception as error:  # numpy, json and the system each raise their own
        raise ValueError(f"label_noise {file} cannot be read as a matrix: {error}") from error


def with_wrong_labels(data: ImageSet, transition: Tensor, seed: int) -> ImageSet:
    """The set with labels drawn through the matrix, always the same of a seed."""
    assert isinstance(data, ArraySet | FileSet | LatentSet)
    assert data.targets is not None
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(data), generator=generator, dtype=torch.float64)
    return replace(data, targets=corrupt_labels(data.targets, transition, uniforms))


class JoinedSet:
    """Images of right proportions, then biased ones, without labels.

    Parameters
    ----------
    reference, biased : ImageSet
        Of one shape.

    Raises
    ------
    ValueError
        If the shapes differ.
    """

    def __init__(self, reference: ImageSet, biased: ImageSet) -> None:
        if reference.shape != biased.shape:
            raise ValueError(
                f"reference_data {reference.name!r} has images {tuple(reference.shape)} (channels, height, width), "
                f"{biased.name!r} has {tuple(biased.shape)}; use --resolution"
            )
        self.reference, self.biased = reference, biased
        self.name = f"{biased.name} with {len(reference)} reference images"
        self.shape = biased.shape
        self.classes: tuple[str, ...] = ()
        self.skipped: tuple[str, ...] = (*getattr(reference, "skipped", ()), *getattr(biased, "skipped", ()))

    @property
    def share(self) -> float:
        """Part that the reference images have in the set."""
        return len(self.reference) / len(self)

    def __len__(self) -> int:
        return len(self.reference) + len(self.biased)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images at these indices."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        first = where < len(self.reference)
        images = torch.empty(len(where), *self.shape)
        for part, here, offset in ((self.reference, first, 0), (self.biased, ~first, len(self.reference))):
            if bool(here.any()):
                images[here] = part.__getitems__((where[here] - offset).tolist()).images
        return Batch(images, None)


def check_bias(config: Mapping[str, Any]) -> None:
    """Refuse a `simulated_bias` that is not possible; ValueError says why."""
    for key in config:
        if key not in _BIAS:
            raise unknown_name("parameter of simulated_bias", key, _BIAS)
    classes, kept, reference = (config.get(key) for key in _BIAS)
    numbers = isinstance(classes, list) and classes and all(type(kind) is int and kind >= 0 for kind in classes)
    if not numbers:
        raise ValueError(f"classes of simulated_bias must be a list of class numbers, got {classes!r}")
    if isinstance(kept, bool) or not isinstance(kept, int | float) or not 0 <= kept < 1:
        raise ValueError(f"kept of simulated_bias must be a share in [0, 1), got {kept!r}")
    if type(reference) is not int or reference < 2:
        raise ValueError(f"reference of simulated_bias must be a number of images of at least 2, got {reference!r}")


def with_bias(data: ImageSet, config: Mapping[str, Any], seed: int) -> JoinedSet:
    """Some images as they are for reference, and of the rest only a share of some classes.

    Parameters
    ----------
    data : ImageSet
        With labels.
    config : mapping
        As `check_bias` allows: `classes` (numbers), `kept` (share of them), `reference` (number of images).
    seed : int

    Raises
    ------
    ValueError
        If there are no labels, a class is unknown, or too few images are left.
    """
    if not isinstance(data, ArraySet | FileSet) or data.targets is None:
        raise ValueError(f"simulated_bias needs images with labels, and data set {data.name!r} has none")
    classes, count = torch.tensor(config["classes"]), int(config["reference"])
    if int(classes.max()) >= len(data.classes):
        raise ValueError(f"classes {config['classes']} of simulated_bias are not all in 0 ... {len(data.classes) - 1}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    reference, rest = order[:count], order[count:]
    rare = torch.isin(data.targets[rest], classes)
    kept = rest[~rare | (torch.rand(len(rest), generator=generator) < config["kept"])]
    if not len(kept):
        raise ValueError(f"simulated_bias {dict(config)} leaves no image of the {len(data)} of {data.name!r}")
    return JoinedSet(data.subset(reference), data.subset(kept))
