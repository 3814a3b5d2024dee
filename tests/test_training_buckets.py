"""Batches of several sizes: buckets, padding, masked losses."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from pathline.interpolants import LinearPath
from pathline.training import BucketPlan, GaussianObjective, bucket_sizes, nearest_size, padded, squared_error


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
