"""A folder of images of several sizes, each read at the size of its bucket."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .batches import BatchPlan
from .buckets import BucketPlan, Size, bucket_sizes, nearest_size
from .data import Batch, split_indices, to_signed
from .image_files import folder_part, list_folder, read_image


@dataclass(frozen=True)
class BucketSet:
    """Images on disk, scaled to cover the nearest of some sizes and cut to it.

    Parameters
    ----------
    folder : str
    files : tuple of N str
    originals : tuple of N (height, width)
        Sizes of the files.
    sizes : tuple of (height, width)
        From which each image takes the one of the nearest ratio.
    channels : int
    side : int
        Of the square that stands for all sizes where one is needed, as in previews.
    targets : int64 Tensor (N,), or None
    classes : tuple of str
    skipped : tuple of str
        Files that could not be read and were left out.
    """

    folder: str
    files: tuple[str, ...]
    originals: tuple[Size, ...]
    sizes: tuple[Size, ...]
    channels: int
    side: int
    targets: Tensor | None = None
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder, and how many images have which size."""
        counts = Counter(self.buckets)
        told = ", ".join(f"{counts[size]} of {size[0]}x{size[1]}" for size in sorted(counts))
        return f"{self.folder} ({told})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, and the side of the square twice."""
        return self.channels, self.side, self.side

    @property
    def buckets(self) -> tuple[Size, ...]:
        """Size at which each image is read."""
        return tuple(nearest_size(original, self.sizes) for original in self.originals)

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images and labels at these indices, all of one bucket."""
        images = torch.stack([self._read(int(index)) for index in indices])
        labels = None if self.targets is None else self.targets[torch.as_tensor(indices, dtype=torch.int64)]
        return Batch(to_signed(images), labels)

    def _read(self, index: int) -> Tensor:
        image, (height, width) = read_image(self.files[index]), nearest_size(self.originals[index], self.sizes)
        if len(image) != self.channels:
            raise ValueError(
                f"image {self.files[index]} has {len(image)} channels, the first has {self.channels}; convert them to "
                "one kind"
            )
        scale = max(height / image.shape[1], width / image.shape[2])
        size = [max(least, round(side * scale)) for least, side in zip((height, width), image.shape[1:], strict=True)]
        wide = functional.interpolate(image[None].float(), size, mode="bicubic", antialias=True, align_corners=False)[0]
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return wide[:, top : top + height, left : left + width].round().clamp(0, 255).to(torch.uint8)

    def subset(self, indices: Tensor) -> BucketSet:
        """The images at these indices, as a set."""
        where = indices.tolist()
        return replace(
            self,
            files=tuple(self.files[index] for index in where),
            originals=tuple(self.originals[index] for index in where),
            targets=None if self.targets is None else self.targets[indices],
        )

    def with_at_least(self, count: int) -> BucketSet:
        """The set with fewer sizes, such that each has `count` images; rarer ones go to the nearest of the rest.

        Raises
        ------
        ValueError
            If there are not as many images.
        """
        if len(self) < count:
            raise ValueError(f"{self.folder} has {len(self)} images, fewer than the {count} of a step")
        found = self
        while True:
            counts = Counter(found.buckets)
            rarest = min(counts, key=lambda size: (counts[size], size))
            if counts[rarest] >= count:
                return replace(found, sizes=tuple(sorted(counts)))
            found = replace(found, sizes=tuple(size for size in sorted(counts) if size != rarest))


class BucketBatches(BatchPlan):
    """A `BatchPlan` whose steps see one size each, in the order of a `BucketPlan`."""

    def __init__(self, data: BucketSet, batch_size: int, processes: int, accumulation: int, seed: int) -> None:
        super().__init__(len(data), batch_size, processes, accumulation, seed)
        object.__setattr__(self, "order", BucketPlan(data.buckets, self.global_batch, seed))

    order: BucketPlan

    def indices(self, step: int, places: Tensor) -> list[int]:
        """Data indices of these places of the global batch of a step, all of one size."""
        return self.order.indices(step, places)

    def indices_at(self, positions: Tensor) -> list[int]:
        """Data indices of these positions in the stream of samples."""
        steps = (positions // self.global_batch).tolist()
        places = positions % self.global_batch
        return [self.order.indices(step, place[None])[0] for step, place in zip(steps, places, strict=True)]


def read_buckets(
    folder: str, split: str, side: int, multiple: int, max_ratio: float, unreadable: str = "error"
) -> BucketSet:
    """Images below a folder in buckets of about side² pixels; classes by sub-folder.

    Parameters
    ----------
    folder, split, unreadable
        As of `load_data`.
    side : int
    multiple, max_ratio
        As of `bucket_sizes`.

    Raises
    ------
    ValueError
        If there are no images, one cannot be opened, or no size fits.
    """
    from PIL import Image

    if not Path(folder).is_dir():
        raise ValueError(f"buckets need a folder of images (train_data_dir), got {folder!r}")
    sizes = tuple(bucket_sizes(side * side, multiple, max_ratio))
    root, own_split = folder_part(Path(folder), split)
    listed = list_folder(root, unreadable)
    originals = []
    for file in listed.files:
        try:
            with Image.open(file) as image:
                originals.append((image.height, image.width))
        except Exception as error:  # Pillow raises many kinds
            raise ValueError(f"image {file} cannot be read: {error}") from error
    whole = BucketSet(
        folder, listed.files, tuple(originals), sizes, len(read_image(listed.files[0])), side, *listed[1:]
    )
    return whole if own_split else whole.subset(split_indices(len(whole), split, whole.targets))
