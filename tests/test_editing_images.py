"""SDEdit, in-painting, RePaint and SDE-Drag against closed-form laws and exact identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import Gaussian, GaussianMixture, LinearPath, VPPath
from pathline.samplers import ClassifierFree, build_table, make_nodes, run, sample
from pathline.samplers.editing import (
    KnownChain,
    KnownRegion,
    drag_scales,
    drag_segments,
    editing_table,
    invert_sde,
    move_patches,
    repaint_table,
    repaint_walk,
    sde_drag,
    sdedit,
)
from pathline.samplers.guidance import Scheduled

F64 = torch.float64
PATH = VPPath()
UNIT = Gaussian(torch.zeros(1, dtype=F64), variance=1.0).as_model(PATH)
LATENT = GaussianMixture(
    [0.5, 0.5], np.random.default_rng(0).normal(size=(2, 2, 12, 12)), std=[0.5, 0.7], classes=[0, 1]
)


def half() -> float:
    """Where signal² is ½."""
    return float(PATH.time_at(torch.tensor(0.0, dtype=F64)))


# --- SDEdit -----------------------------------------------------------------------------------------------


def test_sdedit_of_a_standard_normal_is_the_known_law() -> None:
    """A = signal² at the start: the SDE gives N(A·guide, 1 − A²), the flow N(√A·guide, 1 − A)."""
    guide = torch.full((8000, 1), 3.0, dtype=F64)
    nodes = make_nodes(PATH, np.append(np.linspace(half(), 1.0 - 1e-4, 60), 1.0))
    for method, options, mean, variance in (("ddim", {"eta": 1.0}, 1.5, 0.75), ("ddim", {}, 2.1213, 0.5)):
        found = sdedit(build_table(method, nodes, **options), UNIT, guide, seed=3)
        assert float(found.mean()) == pytest.approx(mean, abs=0.04)
        assert float(found.var()) == pytest.approx(variance, abs=0.05)
    twice = sdedit(build_table("ddim", nodes, eta=1.0), UNIT, guide, repeats=2, seed=3)
    assert float(twice.mean()) == pytest.approx(0.75, abs=0.05)  # A² of the guide
    flow = LinearPath()
    model = Gaussian(torch.zeros(1, dtype=F64), variance=1.0).as_model(flow, "velocity")
    late = build_table("heun", make_nodes(flow, np.linspace(0.999, 1.0, 3)))
    assert torch.allclose(sdedit(late, model, guide, prediction="velocity"), guide, atol=0.02)


def test_the_kept_part_of_sdedit_is_the_original() -> None:
    path = VPPath()
    model = LATENT.as_model(path)
    x = LATENT.sample(3, torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 12, 12, dtype=F64)
    mask[..., :6] = 1.0
    table = build_table("ddim", make_nodes(path, "time", 10).part(4), eta=1.0)
    edited = sdedit(table, model, torch.zeros_like(x), mask=mask, original=x, repeats=2)
    assert torch.equal(edited[..., :6], x[..., :6])
    assert not torch.allclose(edited[..., 6:], x[..., 6:], atol=0.1)
    one = sdedit(table, model, torch.zeros_like(x)[1:2], mask=mask, original=x[1:2], repeats=2, samples=[1])
    assert torch.allclose(one, edited[1:2], atol=1e-12)
    for bad, message in (({"repeats": 0}, "repeats=0"), ({"original": x}, "no mask")):
        with pytest.raises(ValueError, match=message):
            sdedit(table, model, x, **bad)


# --- in-painting ------------------------------------------------------------------------------------------


def test_the_walk_of_repaint_has_the_published_counts() -> None:
    walk = np.array(repaint_walk(250))
    assert ((np.diff(walk) > 0).sum(), (np.diff(walk) < 0).sum()) == (2410, 2160)
    assert set(np.diff(walk)) == {-1, 1}
    assert (walk[0], walk[-1], walk.max()) == (0, 250, 250)
    assert repaint_walk(5, 2, 1) == [0, 1, 2, 3, 4, 5]
    table = repaint_table(make_nodes(PATH, "time", 20), jump_length=3, repeats=2)
    walked = np.diff(repaint_walk(20, 3, 2))
    assert table.evaluations == int((walked > 0).sum())
    with pytest.raises(ValueError, match="jump_length=0"):
        repaint_walk(10, 0)


def unknown(repeats: int, count: int, steps: int = 100) -> tuple[float, float]:
    """Moments of the second coordinate given 1.5 for the first, of N(0, [[1, .8], [.8, 1]])."""
    data = Gaussian(torch.zeros(2, dtype=F64), torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64))
    table = repaint_table(make_nodes(PATH, "time", steps), jump_length=1, repeats=repeats)
    x = PATH.prior((count, 2), torch.Generator().manual_seed(0), dtype=F64)
    region = KnownRegion(torch.tensor([1.5, 0.0], dtype=F64), torch.tensor([1.0, 0.0]))
    found = run(table, data.as_model(PATH), x, hooks=[region], seed=1)
    assert torch.equal(found[:, 0], torch.full((count,), 1.5, dtype=F64))
    return float(found[:, 1].mean()), float(found[:, 1].var())


def test_repaint_mends_the_bias_of_replacement() -> None:
    """Exact N(1.2, 0.36); published moments with 1 and 2 repeats of every step."""
    plain, mended = unknown(1, 4000), unknown(2, 4000)
    assert plain == pytest.approx((0.736, 0.454), abs=0.045)
    assert mended == pytest.approx((0.932, 0.370), abs=0.045)


@pytest.mark.slow
def test_more_repeats_come_closer() -> None:
    found = [unknown(repeats, 20000) for repeats in (1, 2, 5, 10, 20)]
    assert [mean for mean, _ in found] == pytest.approx([0.736, 0.932, 1.091, 1.148, 1.172], abs=0.02)
    assert [variance for _, variance in found] == pytest.approx([0.454, 0.370, 0.314, 0.285, 0.258], abs=0.02)


def test_a_known_chain_is_consistent_and_exact() -> None:
    table, model = editing_table(PATH, 30), LATENT.as_model(PATH)
    x = LATENT.sample(2, torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 12, 12, dtype=F64)
    mask[..., :6] = 1.0
    found = invert_sde(table, model, x)
    start = torch.where(mask > 0, found.start, torch.randn_like(x))
    painted = run(table, model, start, hooks=[KnownChain(found, mask)], seed=2)
    assert torch.equal(painted[..., :6], x[..., :6])
    assert not torch.allclose(painted[..., 6:], x[..., 6:], atol=0.1)


def test_known_images_of_a_batch_do_not_fit_a_chunk() -> None:
    x, region = torch.zeros(4, 2, dtype=F64), KnownRegion(torch.zeros(4, 2), torch.ones(2))
    law = Gaussian(torch.zeros(2, dtype=F64), variance=1.0)
    with pytest.raises(ValueError, match="4 images for a batch of 2"):
        sample(law.as_model(PATH), x, path=PATH, steps=2, hooks=[region], chunk_size=2)
    whole = sample(
        law.as_model(PATH), x, path=PATH, steps=2, hooks=[KnownRegion(torch.ones(2), torch.ones(2))], chunk_size=2
    )
    assert torch.equal(whole, torch.ones(4, 2, dtype=F64))


# --- SDE-Drag ---------------------------------------------------------------------------------------------


def test_segments_of_a_drag() -> None:
    assert len(drag_segments([(0, 0)], [(7, 0)])) - 1 == 4  # |7/3 − 2| > |7/4 − 2|
    assert len(drag_segments([(0, 0)], [(2, 0)])) - 1 == 1
    assert len(drag_segments([(0, 0)], [(0, 5)])) - 1 == 3  # |5/2 − 2| > |5/3 − 2|
    ways = drag_segments([(0, 0), (5, 5)], [(7, 0), (5, 5)])
    assert [way[0] for way in ways] == [(0, 0), (1, 0), (3, 0), (5, 0), (7, 0)]
    assert all(way[1] == (5, 5) for way in ways)
    with pytest.raises(ValueError, match="no pairs"):
        drag_segments([(0, 0)], [])


def test_patches_move_and_keep_their_variance() -> None:
    x, z = torch.randn(2, 400, 4, 12, 12, generator=torch.Generator().manual_seed(0), dtype=F64)
    moved = move_patches(x, [(3, 3)], [(9, 8)], z, radius=2)
    assert torch.equal(moved[..., 7:12, 6:11], 1.1 * x[..., 1:6, 1:6])
    assert float(moved[..., 1:6, 1:6].var()) == pytest.approx(1.0, abs=0.03)
    same = torch.ones_like(x, dtype=torch.bool)
    same[..., 7:12, 6:11] = same[..., 1:6, 1:6] = False
    assert torch.equal(moved[same], x[same])
    corner = move_patches(x, [(0, 0)], [(5, 5)], z, radius=3)  # clipped jointly: one corner each
    assert torch.equal(corner[..., 5:9, 5:9], 1.1 * x[..., 0:4, 0:4])
    with pytest.raises(ValueError, match="must lie in"):
        move_patches(x, [(0, 0)], [(12, 0)], z)


def test_a_drag_that_may_change_nothing_changes_nothing() -> None:
    table, x = editing_table(PATH, 20, 0.6), LATENT.sample(2, torch.Generator().manual_seed(1))
    labels = {"labels": torch.tensor([0, 1])}
    free = ClassifierFree(1.0, {"labels": torch.full((2,), -1)})
    given: dict[str, Any] = {"model_kwargs": labels, "guidance": Scheduled(free, drag_scales(table)), "radius": 2}
    model = LATENT.as_model(PATH, "noise")
    points = ([(3, 3)], [(8, 3)])
    closed = sde_drag(table, model, x, *points, mask=torch.zeros(1, 1, 12, 12), prediction="noise", **given)
    assert torch.allclose(closed, x, atol=1e-12)
    still = sde_drag(table, model, x, *points, prediction="noise", amplify=1.0, keep=1.0, **given | {"radius": 0})
    nothing = invert_sde(table, model, x, prediction="noise", model_kwargs=labels).decode(model, model_kwargs=labels)
    assert torch.allclose(nothing, x, atol=1e-12)
    dragged = sde_drag(table, model, x, *points, prediction="noise", **given)
    assert not torch.allclose(dragged, x, atol=0.1)
    assert not torch.allclose(dragged, still, atol=0.01)
    place = type("Place", (), {"row": 0})
    assert drag_scales(table)(place) == 3.0
    place.row = len(table.rows) - 1
    assert drag_scales(table)(place) == 1.0


def test_the_source_patch_moves_to_the_target() -> None:
    """One pixel is bright; after a drag the law of a flat Gaussian keeps it where it was put."""
    flat = Gaussian(torch.zeros(1, 12, 12, dtype=F64), variance=4.0).as_model(PATH)
    x = torch.zeros(1, 1, 12, 12, dtype=F64)
    x[..., 3, 3] = 20.0
    moved: Tensor = sde_drag(editing_table(PATH, 20, 0.4), flat, x, [(3, 3)], [(3, 6)], step_size=5.0, radius=1)
    assert float(moved[0, 0, 3, 6]) > 6.0
    assert float(moved[0, 0, 3, 3]) < 17.0
