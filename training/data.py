"""Image sets in memory or on disk, with a deterministic split, as batches in [-1, 1]."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pathline.interpolants import check_name

UNREADABLE = ("error", "skip")
SPLITS = ("train", "test", "all")
_SPLIT_SEED = 20
_TEST_SHARE = 6


class Batch(NamedTuple):
    """Images (B, C, H, W), float32 in [-1, 1], and if there are any int64 labels (B,), noises, and vectors (B, K)."""

    images: Tensor
    labels: Tensor | None
    noise: Tensor | None = None
    vectors: Tensor | None = None


class ImageSet(Protocol):
    """What the trainer needs of a data set."""

    @property
    def name(self) -> str:
        """Name or place of the set."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty without labels."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images and labels at these indices (the batched fetch of torch's data loader)."""
        ...


@dataclass(frozen=True)
class ArraySet:
    """Images held in memory as uint8.

    Parameters
    ----------
    name : str
    pixels : uint8 Tensor, shape (N, C, H, W)
    targets : int64 Tensor, shape (N,), or None
    classes : tuple of str
        Names of the classes; empty without labels.
    skipped : tuple of str
        Files that could not be read and were left out.
    vectors : float Tensor (N, K), or None
        Conditions of the images.
    """

    name: str
    pixels: Tensor
    targets: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    vectors: Tensor | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or self.pixels.shape[1] not in (1, 3):
            raise ValueError(
                f"images of {self.name!r} must be uint8 with 1 or 3 channels, shape (N, C, H, W), got "
                f"{self.pixels.dtype} {tuple(self.pixels.shape)}"
            )
        if len(self.pixels) == 0:
            raise ValueError(f"data set {self.name!r} holds no images")
        if self.targets is not None:
            self._check_labels(self.targets)

    def _check_labels(self, targets: Tensor) -> None:
        if targets.shape != (len(self.pixels),):
            raise ValueError(
                f"data set {self.name!r} has {len(self.pixels)} images but labels of shape {tuple(targets.shape)}"
            )
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"labels of {self.name!r} run from {low} to {high}, but there are {len(self.classes)} classes"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        where = torch.as_tensor(indices, dtype=torch.int64)
        images = to_signed(self.pixels[where])
        labels = None if self.targets is None else self.targets[where]
        return Batch(images, labels, vectors=None if self.vectors is None else self.vectors[where])

    def subset(self, indices: Tensor) -> ArraySet:
        """The images at these indices, as a set."""
        targets = None if self.targets is None else self.targets[indices]
        vectors = None if self.vectors is None else self.vectors[indices]
        return ArraySet(self.name, self.pixels[indices], targets, self.classes, self.skipped, vectors)

    def tensor(self) -> Tensor:
        """All images, float32 in [-1, 1], (N, C, H, W)."""
        return to_signed(self.pixels)


@dataclass(frozen=True)
class FileSet:
    """Images on disk, read when they are asked for.

    Parameters
    ----------
    name : str
    files : tuple of str
    read : callable file -> uint8 Tensor (C, H, W)
        Must give the same shape for every file; errors name the file.
    shape : (C, H, W)
    targets : int64 Tensor, shape (N,), or None
    classes : tuple of str
    skipped : tuple of str
        Files that could not be read and were left out.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[str], Tensor]
    shape: tuple[int, int, int]
    targets: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        images = torch.stack([self.read(self.files[int(index)]) for index in indices])
        labels = None if self.targets is None else self.targets[torch.as_tensor(indices, dtype=torch.int64)]
        return Batch(to_signed(images), labels)

    def subset(self, indices: Tensor) -> FileSet:
        """The images at these indices, as a set."""
        files = tuple(self.files[index] for index in indices.tolist())
        targets = None if self.targets is None else self.targets[indices]
        return FileSet(self.name, files, self.read, self.shape, targets, self.classes, self.skipped)

    def tensor(self) -> Tensor:
        """All images, float32 in [-1, 1], (N, C, H, W)."""
        return self.__getitems__(range(len(self))).images


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 0..255 as float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def split_indices(count: int, split: str, labels: Tensor | None = None) -> Tensor:
    """Indices of one part of a set that has no split of its own, in increasing order.

    One image in six is held out ("test"), of each class alike where there are labels, and the same ones
    whatever the seed of a training run.

    Raises
    ------
    ValueError
        If the split is unknown or too few images are there to hold any out.
    """
    check_name("split", split, SPLITS)
    if split == "all":
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    groups = [order] if labels is None else [order[labels[order] == kind] for kind in labels.unique()]
    held_out = torch.zeros(count, dtype=torch.bool)
    for group in groups:
        held_out[group[: len(group) // _TEST_SHARE]] = True
    if not bool(held_out.any()):
        raise ValueError(f"{count} images (classes: {len(groups)}) are too few to hold out one in {_TEST_SHARE}")
    return (held_out if split == "test" else ~held_out).nonzero()[:, 0]


def load_data(
    dataset_name: str | None = None,
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    resolution: int | None = None,
    center_crop: bool = False,
    unreadable: str = "error",
) -> ArraySet | FileSet:
    """Load images by name, from a folder or from a file.

    Parameters
    ----------
    dataset_name : str, optional
        "digits", "fashion-mnist", "cifar10", or a name on the hub (needs the `datasets` library). Default:
        "digits", unless `data_dir` is given.
    split : {"train", "test", "all"}
        Sets without a split of their own hold out one image in six.
    data_dir : path, optional
        With a known name: where its files are. Alone: a folder of images (classes are its sub-folders) or an
        .npz with `arr_0` (uint8, NHWC) and perhaps `labels`.
    resolution : int, optional
        Side in pixels to which images are resized; default their own.
    center_crop : bool
        Cut images that are not square to their central square; without it they are refused.
    unreadable : {"error", "skip"}
        What becomes of files in a folder of images that cannot be read; to skip them each is read once beforehand.

    Raises
    ------
    ValueError
        If something is missing, damaged, unknown or of another shape than the rest; it is named.
    """
    from .readers import read_images

    check_name("split", split, SPLITS)
    check_name("unreadable", unreadable, UNREADABLE)
    if resolution is not None and resolution < 1:
        raise ValueError(f"resolution must be at least 1 pixel, got {resolution}")
    return read_images(dataset_name, data_dir, split, resolution, center_crop, unreadable)


def fetch_batches(data: ImageSet, index_batches: Iterable[Sequence[int]], workers: int = 0) -> Iterator[Batch]:
    """Batches at the given indices, in the given order, read ahead by `workers` processes if there are any."""
    if workers == 0:
        for indices in index_batches:
            yield data.__getitems__(indices)
        return
    sampler: Any = _Lists(index_batches)
    dataset: Any = data  # torch's types ask for a Dataset; it uses __getitems__ of anything
    yield from torch.utils.data.DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=_as_is, worker_init_fn=_plain_signals
    )


class _Lists:
    """Index batches as the sampler a data loader wants."""

    def __init__(self, index_batches: Iterable[Sequence[int]]) -> None:
        self.index_batches = index_batches

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self.index_batches:
            yield [int(index) for index in indices]


def _as_is(batch: Any) -> Any:
    return batch


def _plain_signals(worker: int) -> None:
    """Leave Ctrl-C to the process that trains, which stops the readers; a reader has inherited its handlers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
