"""Batches of several sizes: buckets, padding, masked losses."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pathline.interpolants import LinearPath
from pathline.training import (
    BucketPlan,
    GaussianObjective,
    bucket_sizes,
    nearest_size,
    padded,
    resolve_options,
    squared_error,
)
from pathline.training.bucket_set import BucketBatches, read_buckets
from support.training_runs import fresh_accelerate, resumed_equals_unbroken, run


def test_sizes_fill_the_area_and_images_go_to_the_nearest_ratio() -> None:
    sizes = bucket_sizes(64 * 64, multiple=8, max_ratio=2.0)
    assert (64, 64) in sizes
    for height, width in sizes:
        assert height % 8 == width % 8 == 0
        assert height * width <= 64 * 64 < height * (width + 8)
        assert max(height, width) <= 2 * min(height, width)
    assert nearest_size((200, 200), sizes) == (64, 64)
    assert nearest_size((100, 900), sizes) == min(sizes, key=lambda size: size[0] / size[1])


def test_a_step_has_one_size_and_every_epoch_all_images_but_the_remainders() -> None:
    sizes = [(8, 8)] * 21 + [(8, 16)] * 10 + [(16, 8)] * 4
    plan = BucketPlan(
        tuple(sizes[k] for k in torch.randperm(35, generator=torch.Generator().manual_seed(0))), 4, seed=3
    )
    places = torch.arange(4)
    assert plan.epoch_steps == 5 + 2 + 1
    first = [plan.indices(step, places) for step in range(8)]
    assert all(len({plan.buckets[k] for k in step}) == 1 for step in first)
    counts = Counter(k for step in first for k in step)
    assert len(counts) == 32
    assert set(counts.values()) == {1}
    second = [plan.indices(step, places) for step in range(8, 16)]
    assert first != second
    # Any split, any order, and a new plan give the same steps.
    again = BucketPlan(plan.buckets, 4, seed=3)
    assert [again.indices(11, torch.tensor([k]))[0] for k in range(4)] == second[3]
    assert again.indices(2, places) == first[2]
    assert BucketPlan(plan.buckets, 4, seed=4).indices(0, places) != first[0]


def test_padding_and_its_mask_leave_the_loss_of_each_image_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2, height, width, generator=generator) for height, width in ((3, 5), (6, 2), (4, 4))]
    noises = [torch.randn(image.shape, generator=generator) for image in images]
    batch, mask = padded(images, multiple=4)
    assert batch.shape == (3, 2, 8, 8)
    assert mask.sum((1, 2, 3)).tolist() == [15, 12, 16]
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return 3.0 + x.sin()

    for reduction in ("mean", "sum", "half_sum"):
        objective = GaussianObjective(LinearPath(), "velocity", reduction=reduction)
        together = objective(model, batch, padded(noises, multiple=4)[0], t, mask=mask)
        alone = [objective(model, images[k][None], noises[k][None], t[k : k + 1])[0] for k in range(3)]
        torch.testing.assert_close(together, torch.stack(alone))


def test_masked_entries_pass_no_gradient_and_nothing_at_all_gives_zero() -> None:
    output = torch.full((2, 3), float("inf"))
    output[0, 0] = 2.0
    output.requires_grad_()
    mask = torch.tensor([[1, 0, 0], [0, 0, 0]])
    loss = squared_error(output, torch.zeros(2, 3), "mean", mask)
    assert loss.tolist() == [4.0, 0.0]
    loss.sum().backward()
    assert output.grad is not None
    assert output.grad[0].tolist() == [4.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bucket_sizes(32, multiple=8), "area=32 does not hold a square"),
        (lambda: bucket_sizes(64, max_ratio=0.5), "max_ratio must be"),
        (lambda: BucketPlan(((8, 8),) * 3, 4, 0), r"bucket \(8, 8\) has 3 images, fewer than the 4"),
        (lambda: BucketPlan((), 4, 0), "holds no images"),
        (lambda: BucketPlan(((8, 8),), 0, 0), "global_batch must be at least 1, got 0"),
        (lambda: padded([]), r"tensors \(C, H, W\)"),
        (lambda: padded([torch.zeros(1, 2, 2), torch.zeros(3, 2, 2)]), "one number of channels"),
        (lambda: squared_error(torch.zeros(2, 3), torch.zeros(2, 3), "mean", torch.ones(2)), "mask must broadcast"),
    ],
)
def test_bad_input_is_refused_with_words(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


SHAPES = ((32, 32), (24, 40), (40, 20), (17, 31))
BUCKETS: dict[str, Any] = {
    "buckets": True,
    "resolution": 16,
    "bucket_multiple": 4,
    "network_config": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "attention_head_dim": 8},
}


def image_folder(folder: Path, count: int = 60, classes: bool = False) -> str:
    """Grey images of four shapes, and one panorama; each gets brighter to the right, from its own grey."""
    for number in range(count):
        height, width = SHAPES[number % 4] if number < count - 1 else (12, 90)
        place = folder / ("ab"[number % 2] if classes else "")
        place.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(number % 50, 255, width).astype(np.uint8)
        Image.fromarray(np.repeat(ramp[None], height, 0)).save(place / f"{number:03d}.png")
    return str(folder)


def test_a_folder_is_read_in_buckets(tmp_path: Path) -> None:
    data = read_buckets(image_folder(tmp_path, classes=True), "all", 16, 4, 4.0)
    assert data.classes == ("a", "b")
    assert data.shape == (1, 16, 16)
    assert len(set(data.sizes)) == len(data.sizes) > 3
    for original, size in zip(data.originals, data.buckets, strict=True):
        assert size[0] % 4 == size[1] % 4 == 0
        assert size[0] * size[1] <= 256
        if original != (12, 90):
            assert abs(math.log(size[0] * original[1] / size[1] / original[0])) < 0.35
    where = [index for index, size in enumerate(data.buckets) if size == (12, 20)][:3]
    batch = data.__getitems__(where)
    assert batch.images.shape == (3, 1, 12, 20)
    assert batch.labels is not None
    assert float((batch.images[:, :, 0] - batch.images[:, :, -1]).abs().max()) < 0.02  # the ramp lies as it did
    assert bool((batch.images.diff(dim=3).mean((0, 1, 2)) > 0).all())
    few = data.with_at_least(10)
    assert min(few.buckets.count(size) for size in few.sizes) >= 10
    assert set(few.sizes) < set(data.sizes)
    with pytest.raises(ValueError, match="has 60 images, fewer than the 61 of a step"):
        data.with_at_least(61)


@pytest.mark.slow
def test_a_run_in_buckets_sees_one_size_a_step_on_any_split_and_resumes(tmp_path: Path) -> None:
    options = {**BUCKETS, "train_data_dir": image_folder(tmp_path / "images", classes=True), "class_conditional": True}
    with fresh_accelerate():
        resumed_equals_unbroken(tmp_path, **options, coupling="c2ot", random_flip=True)
    with fresh_accelerate():
        run(
            tmp_path / "shown",
            **{**options, "max_train_steps": 1, "preview_images": 2, "preview_nfe": 2, "plots": True},
        )
    assert (tmp_path / "shown" / "previews" / "step-000001.png").is_file()
    data = read_buckets(options["train_data_dir"], "train", 16, 4, 2.0).with_at_least(8)
    whole, parts = BucketBatches(data, 8, 1, 1, 0), BucketBatches(data, 2, 2, 2, 0)
    seen = set()
    for step in range(10):
        indices = whole.indices(step, torch.arange(8))
        assert len({data.buckets[index] for index in indices}) == 1
        seen.add(data.buckets[indices[0]])
        order = torch.cat([parts.places(micro, process) for micro in range(2) for process in range(2)])
        assert parts.indices(step, order) == indices == whole.indices_at(torch.arange(8 * step, 8 * step + 8))
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buckets": True, "resolution": 16}, "buckets are for a folder of images of several sizes"),
        ({**BUCKETS, "train_data_dir": "x", "resolution": None}, "buckets need a resolution that is a multiple of"),
        ({**BUCKETS, "train_data_dir": "x", "resolution": 18}, "that is a multiple of bucket_multiple=4, got 18"),
        ({**BUCKETS, "train_data_dir": "x", "network": "dit"}, "network='dit' takes square images"),
        ({**BUCKETS, "train_data_dir": "x", "center_crop": True}, "center_crop=True does not go with buckets"),
        ({**BUCKETS, "train_data_dir": "x", "bucket_multiple": 0}, "bucket_multiple must be at least 1, got 0"),
        ({**BUCKETS, "train_data_dir": "x", "coupling": "ot", "coupling_batch": 64}, "coupling_batch=64 does not go"),
    ],
)
def test_what_does_not_go_with_buckets(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_options(options)


def test_folders_that_make_no_buckets_are_refused(tmp_path: Path) -> None:
    images, out = image_folder(tmp_path / "images"), tmp_path / "out"
    for options, words in (
        ({"train_data_dir": str(tmp_path / "none")}, "buckets need a folder of images"),
        ({"train_data_dir": images, "bucket_multiple": 2}, "bucket_multiple must be a multiple of 4, by which"),
        ({"train_data_dir": images, "bucket_ratio": 0.5}, "max_ratio must be a finite number of at least 1"),
        ({"train_data_dir": images, "train_batch_size": 64}, "fewer than the 64 of a step"),
    ):
        with pytest.raises(ValueError, match=words), fresh_accelerate():
            run(out, **{**BUCKETS, **options})
    (tmp_path / "images" / "000.png").write_text("no image")
    with pytest.raises(ValueError, match=r"000.png cannot be read"), fresh_accelerate():
        run(out, **BUCKETS, train_data_dir=images)
    with fresh_accelerate():
        run(out, **BUCKETS, train_data_dir=images, unreadable="skip", max_train_steps=1)
