"""Images to restore, latents, scaled skips, and the direction of the velocity, in runs and by themselves."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pathline.interpolants import LinearPath
from pathline.samplers import sample
from pathline.training import GaussianObjective, build_network, default_config, load_data, load_pipeline, reconstruct
from pathline.training.degradation import degradation_from_config
from pathline.training.direction import loss_with_direction
from pathline.training.loss_uncertainty import LossUncertainty, balanced
from pathline.training.skip_scaling import install_skip_scaling
from support.training_runs import fresh_accelerate, losses, resumed_equals_unbroken, run, same, weights

INPAINTING = {"image_condition": "inpainting", "image_condition_config": {"tiles": 4, "hidden": 0.5}}
SMALLER = {"image_condition": "super_resolution", "image_condition_config": {"factor": 2, "noise": 0.2}}


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (INPAINTING, True),
        (SMALLER, False),
        pytest.param(INPAINTING, False, marks=pytest.mark.slow),
        pytest.param(SMALLER, True, marks=pytest.mark.slow),
    ],
    ids=["inpainting-image", "super-resolution-noise", "inpainting-noise", "super-resolution-image"],
)
def test_restoring_runs_resume_and_load(tmp_path: Path, settings: dict[str, Any], start: bool) -> None:
    options = {**settings, "image_start": start, "preview_images": 4, "preview_nfe": 2, "class_conditional": start}
    folder = resumed_equals_unbroken(tmp_path, **options)
    assert (folder / "previews" / "step-000006.png").is_file()
    assert not (folder / "model_index.json").exists()  # no stock pipeline hands on an image
    loaded = load_pipeline(folder)
    assert loaded.shape == (1, 8, 8)
    degrade = degradation_from_config(loaded.metadata["image_condition"])
    data = load_data("digits").tensor()[:3]
    generator = torch.Generator().manual_seed(0)
    noise, uniforms = torch.randn(data.shape, generator=generator), torch.rand(3, 4, 4, generator=generator)
    begin, conditions = degrade(data, noise, uniforms)
    made = sample(loaded.model, begin, method="heun", grid="time", nfe=4, model_kwargs=conditions)
    assert isinstance(made, Tensor)
    assert bool(torch.isfinite(made).all())
    if start and settings is INPAINTING:  # what is kept does not move
        kept = conditions["free"] == 0
        assert bool(kept.any())
        torch.testing.assert_close(made[kept], data[kept])
    with pytest.raises(ValueError, match="this network needs an image beside the state"):
        loaded.model(noise, torch.full((3,), 0.5))


@pytest.mark.slow
def test_restoring_learns_from_what_it_sees(tmp_path: Path) -> None:
    """The loss of a network that sees half of the image is lower than that of one that sees nothing."""
    options = {"max_train_steps": 40, "train_batch_size": 16, "learning_rate": 5e-3, "logging_steps": 20}
    found = []
    for name, extra in (("plain", {}), ("seen", SMALLER), ("start", {**SMALLER, "image_start": True})):
        lines = (run(tmp_path / name, **options, **extra) / "log.jsonl").read_text().splitlines()
        found.append(json.loads(lines[-1])["loss"])
    assert found[1] < 0.9 * found[0]
    assert found[2] < 0.5 * found[0]


def test_latents_are_scaled_and_learned(tmp_path: Path) -> None:
    values = 3.0 + 5.0 * np.random.default_rng(0).standard_normal((48, 4, 8, 8)).astype(np.float16)
    np.savez(tmp_path / "x.npz", latents=values, labels=np.arange(48) % 3)
    options = {"latents": str(tmp_path / "x.npz"), "latent_scale": 0.2, "latent_shift": 3.0}
    folder = resumed_equals_unbroken(tmp_path, **options, class_conditional=True, preview_images=4)
    loaded = load_pipeline(folder)
    assert loaded.shape == (4, 8, 8)
    assert loaded.metadata["latents"] == {"scale": 0.2, "shift": 3.0}
    assert loaded.metadata["data"]["images"] == 42  # one in six is held out, of each class alike
    assert not (folder / "previews").exists()
    from pathline.training.latents import read_latents

    batch = read_latents(str(tmp_path / "x.npz"), "all", 0.2, 3.0).__getitems__(range(48))
    assert abs(float(batch.images.mean())) < 0.1
    assert float(batch.images.std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"latents": np.zeros((4, 4, 8, 8), np.uint8)}, "must be floats"),
        ({"latents": np.full((12, 4, 8, 8), np.nan, np.float32)}, "not finite: 12 of 12, first 0"),
        ({"other": np.zeros(3)}, "cannot be read as an .npz with latents"),
        ({"latents": np.zeros((12, 4, 8, 8), np.float32), "labels": np.zeros(3)}, "must be 12 class numbers"),
    ],
)
def test_bad_latents_are_named(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", latents=str(tmp_path / "x.npz"))


def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    config = default_config("unet", (1, 8, 8))
    return build_network({**config, "block_out_channels": [8, 16], "norm_num_groups": 4, "attention_head_dim": 8})


def test_skips_are_scaled_outermost_least() -> None:
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.7])
    plain, scaled = unet(), unet()
    seen: list[Tensor] = []
    for network in (plain, scaled):
        if network is scaled:
            install_skip_scaling(network, "constant", 0.5)
        for block in network.up_blocks:  # type: ignore[union-attr]
            # hooks run in order of their registration: this one sees what the block sees
            block.register_forward_pre_hook(lambda block, arguments: seen.extend(reversed(arguments[1])))
        with torch.no_grad():
            network(x, t)
    half = len(seen) // 2
    inner_first = zip(seen[:half], seen[half:], strict=True)
    for exponent, (before, after) in zip(reversed(range(half)), inner_first, strict=True):
        assert float(after.norm() / before.norm()) == pytest.approx(0.5**exponent, rel=1e-5)


def test_a_scale_of_one_changes_nothing_and_others_are_loaded_again(tmp_path: Path) -> None:
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7])
    plain, one = unet(), unet()
    install_skip_scaling(one, "constant", 1.0)
    with torch.no_grad():
        assert torch.equal(plain(x, t).sample, one(x, t).sample)
    folder = resumed_equals_unbroken(tmp_path, skip_scale=0.7)
    assert not (folder / "model_index.json").exists()
    loaded = load_pipeline(folder)
    hooked = [len(block._forward_pre_hooks) for block in loaded.network.up_blocks]  # type: ignore[union-attr]
    assert hooked == [1, 1]


def test_direction_is_added_to_the_loss() -> None:
    path = LinearPath()
    data, noise = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    t = torch.rand(6, dtype=torch.float64) * 0.8 + 0.1
    exact = GaussianObjective(path, "velocity")
    right = loss_with_direction(exact, 2.0, lambda x, t: 3.0 * (data - noise), data, noise, t)
    torch.testing.assert_close(right, 4.0 * (data - noise).square().flatten(1).mean(1))  # any length points right
    wrong = loss_with_direction(exact, 2.0, lambda x, t: noise - data, data, noise, t)
    torch.testing.assert_close(wrong, 4.0 * (data - noise).square().flatten(1).mean(1) + 4.0)
    of_data = GaussianObjective(path, "data")
    torch.testing.assert_close(
        loss_with_direction(of_data, 1.0, lambda x, t: data, data, noise, t), torch.zeros(6, dtype=torch.float64)
    )


def test_a_run_with_direction_has_a_larger_loss(tmp_path: Path) -> None:
    first = {"logging_steps": 1, "max_train_steps": 1}
    plain, more = (run(tmp_path / str(w), direction_weight=w, **first) for w in (0.0, 1.0))
    values = [json.loads((folder / "log.jsonl").read_text())["loss"] for folder in (plain, more)]
    assert 0.5 < values[1] - values[0] < 1.5  # an untrained network points anywhere


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_condition": "inpaint"}, "unknown image_condition 'inpaint'"),
        (
            {**SMALLER, "image_condition_config": {"factor": 3}},
            "image_condition='super_resolution' .* factor=3: .* must",
        ),
        ({**SMALLER, "image_condition_config": {"scale": 3}}, "unknown parameter of 'super_resolution'.* 'scale'"),
        ({**SMALLER, "image_condition_config": {"factor": 1}}, "factor=1"),
        ({"image_start": True}, "image_start and image_condition_config need image_condition"),
        ({**SMALLER, "image_start": True, "objective": "noise"}, "image_start needs path 'linear'"),
        ({**SMALLER, "coupling": "ot"}, "coupling='ot' does not go with image_condition"),
        ({"latents": "x.npz", "dataset_name": "digits"}, "latents are a data set of their own; leave out dataset_name"),
        ({"latents": "x.npz", "random_flip": True}, "random_flip is for images"),
        ({"latents": "nowhere.npz"}, "nowhere.npz cannot be read"),
        ({"skip_scale": 1.5}, r"skip_scale must be in \(0, 1\], got 1\.5"),
        (
            {"skip_scale": 0.5, "network": "dit", "network_config": {}},
            r"needs a network with skip connections \(unet\)",
        ),
        ({"direction_weight": -1.0}, "direction_weight must be a finite number of at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_all_skips_may_have_one_factor_or_learn_their_own() -> None:
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 0.7])
    plain, halved, learned = unet(), unet(), unet()
    install_skip_scaling(halved, "inverse_sqrt2")
    install_skip_scaling(learned, "learned")
    seen: list[list[Tensor]] = []
    for network in (plain, halved, learned):
        found: list[Tensor] = []
        for block in network.up_blocks:  # type: ignore[union-attr]
            block.register_forward_pre_hook(lambda block, arguments, found=found: found.extend(reversed(arguments[1])))
        with torch.no_grad():
            network(x, t)
        seen.append(found)
    for before, half, own in zip(*seen, strict=True):
        assert float(half.norm() / before.norm()) == pytest.approx(0.5**0.5, rel=1e-5)
        assert 0.2 < float(own.norm() / before.norm()) < 0.8  # sigmoids of small numbers
    added = {name for name, _ in learned.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert added
    assert all("skip_factors" in name for name in added)
    learned(x, t).sample.square().mean().backward()
    assert all(
        bool(value.grad.abs().sum() > 0) for name, value in learned.named_parameters() if name.endswith("layers.2.bias")
    )


def test_learned_factors_are_trained_saved_and_loaded(tmp_path: Path) -> None:
    folder = resumed_equals_unbroken(tmp_path, skip_scaling="learned", ema="power", ema_snapshot_steps=2)
    kept = {name: value for name, value in weights(folder).items() if "skip_factors" in name}
    loaded = load_pipeline(folder)
    assert kept
    for name, value in kept.items():
        assert torch.equal(loaded.network.state_dict()[name], value)
    made = reconstruct(folder, 0.07).network  # between the two that are kept
    assert any("skip_factors" in name for name, _ in made.named_parameters())
    with pytest.raises(ValueError, match=r"skip_scale=0.5 is the κ of skip_scaling 'constant', got 'learned'"):
        run(tmp_path / "other", skip_scaling="learned", skip_scale=0.5)


def test_the_weight_of_a_level_is_learned_until_all_count_alike() -> None:
    """Losses e^λ·(1 + noise): u is their logarithm, and the weighted loss is 1 + u at every level."""
    generator = torch.Generator().manual_seed(0)
    uncertainty = LossUncertainty(seed=1)
    assert torch.equal(uncertainty(torch.linspace(-20, 20, 5)), torch.zeros(5))
    optimizer = torch.optim.Adam(uncertainty.parameters(), lr=0.03)
    for step in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / 600)
        lam = 6 * torch.rand(128, generator=generator) - 3
        losses = lam.exp() * (2 * torch.rand(128, generator=generator))
        optimizer.zero_grad()
        balanced(losses, uncertainty(lam)).mean().backward()
        optimizer.step()
    lam = torch.linspace(-2.5, 2.5, 11)
    torch.testing.assert_close(uncertainty(lam).detach(), lam, rtol=0, atol=0.2)
    assert torch.equal(uncertainty(torch.tensor([math.inf])), uncertainty(torch.tensor([10.0])))


def test_a_learned_weight_is_part_of_the_run_and_not_of_the_result(tmp_path: Path) -> None:
    folder = resumed_equals_unbroken(tmp_path, loss_uncertainty=True, gradient_accumulation_steps=2, train_batch_size=4)
    assert (folder / "checkpoint-6" / "model_1.safetensors").is_file()
    assert (folder / "model_index.json").is_file()
    plain = run(tmp_path / "plain", logging_steps=1, gradient_accumulation_steps=2, train_batch_size=4)
    assert weights(plain).keys() == weights(folder).keys()
    assert not same(weights(plain), weights(folder))
    assert losses(plain)[0] == losses(folder)[0]  # what is told are the losses themselves
    for options in ({"objective": "interpolant"}, {"objective": "convex_flow"}):
        with pytest.raises(ValueError, match="loss_uncertainty weights the log-SNR of a Gaussian path"):
            run(tmp_path / "other", loss_uncertainty=True, **options)
