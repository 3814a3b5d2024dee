"""Numbers that are not finite: they reach neither the weights, nor a checkpoint, nor the result."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pathline.samplers import NonFiniteError
from pathline.training import NonFiniteLossError, resolve_options
from pathline.training.setup import make_task
from pathline.training.soundness import SoundnessCheck
from pathline.training.trainer import Trainer
from support.training_runs import fresh_accelerate, losses, run, same, weights


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    with fresh_accelerate():
        yield


def poison_gradients(monkeypatch: pytest.MonkeyPatch, step: int) -> list[Trainer]:
    """From that step on gradients are NaN while losses stay finite; the trainers that run."""
    original, trainers = Trainer._losses, []

    def poisoned(self: Trainer, places: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        trainers.append(self)
        values, times = original(self, places, batch)
        return (values + (values * 0.0).sqrt() if self.step >= step else values), times

    monkeypatch.setattr(Trainer, "_losses", poisoned)
    return trainers


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = poison_gradients(monkeypatch, 4)
    words = (
        r"norm of the gradient is nan at optimiser step 5, with losses up to .* from time 0\.\d+ \(signal .* to time"
    )
    with pytest.raises(NonFiniteLossError, match=words) as error:
        run(tmp_path, checkpointing_steps=2, train_batch_size=4, gradient_accumulation_steps=2)
    assert str(error.value).endswith("checkpoint-4")
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    present = {name: value.detach() for name, value in trainers[0].bare_network.named_parameters()}
    assert same({name: saved[name] for name in present}, present)
    assert not (tmp_path / "unet").exists()


def test_the_checkpoint_that_is_named_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.save_checkpoint

    def damaging(self: Trainer) -> None:
        original(self)
        if self.step == 4:
            (self.folder / "checkpoint-4" / "optimizer.bin").unlink()

    monkeypatch.setattr(Trainer, "save_checkpoint", damaging)
    poison_gradients(monkeypatch, 4)
    with pytest.raises(NonFiniteLossError, match=r"checkpoint-2$"):
        run(tmp_path, checkpointing_steps=2)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (1e38, r"142 of 142 parameters \(conv_in.* are not finite after optimiser step 1; they were not saved"),
        (1e30, r"weights after optimiser step 1 give a loss of \w+ at time .*; they were not saved"),
    ],
    ids=["weights", "loss"],
)
@pytest.mark.parametrize("ema", ["warmup", "power"])
def test_broken_weights_are_not_written(tmp_path: Path, rate: float, words: str, ema: str) -> None:
    with pytest.raises(NonFiniteLossError, match=words + ".*there is no checkpoint yet"):
        run(tmp_path, learning_rate=rate, lr_warmup_steps=0, max_train_steps=1, preview_images=4, ema=ema)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "previews").exists()


def test_the_look_at_the_weights_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {"logging_steps": 1, "network_config": {"dropout": 0.3, "block_out_channels": [8, 8]}}
    options["network_config"] |= {"norm_num_groups": 4, "attention_head_dim": 8}
    rare = run(tmp_path / "rare", **options)
    often = run(tmp_path / "often", checkpointing_steps=1, **options)
    assert same(weights(rare), weights(often))
    assert losses(rare) == losses(often)


def test_a_scaled_loss_may_overflow_but_not_for_ever(tmp_path: Path) -> None:
    check = SoundnessCheck(make_task(resolve_options({})), tmp_path, scaled=True)
    values, times = torch.ones(4, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    for step in range(1, 50):
        check.before_step(step, values, times, float("inf"))
    check.before_step(50, values, times, 1.0)
    for step in range(51, 100):
        check.before_step(step, values, times, float("nan"))
    with pytest.raises(NonFiniteLossError, match="nan at optimiser step 100 and at the 49 before it"):
        check.before_step(100, values, times, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"loss is inf at optimiser step 1, at time 0\.5000"):
        check.before_step(1, values / 0.0, times, 1.0)


def test_a_sampler_that_fails_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any) -> Tensor:
        raise NonFiniteError("'heun' met a non-finite value")

    monkeypatch.setattr("pathline.training.trainer.draw_preview", failing)
    folder = run(tmp_path, preview_images=4)
    assert (folder / "unet").is_dir()
    assert "no preview of step 6: 'heun' met a non-finite value" in capsys.readouterr().out
