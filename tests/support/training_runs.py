"""Small training runs that take a second, and what to compare of them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pathline.training import train_model

TINY: dict[str, Any] = {
    "network_config": {"block_out_channels": [8, 8], "norm_num_groups": 4, "attention_head_dim": 8},
    "train_batch_size": 8,
    "max_train_steps": 6,
    "lr_warmup_steps": 2,
    "preview_images": 0,
    "plots": False,
    "progress": False,
    "cpu": True,
}


@contextmanager
def fresh_accelerate() -> Iterator[None]:
    """Forget accelerate's state of the process afterwards."""
    from accelerate.state import AcceleratorState, PartialState

    yield
    AcceleratorState._reset_state(True)
    PartialState._reset_state()


def run(folder: Path, **options: Any) -> Path:
    return train_model({**TINY, "output_dir": str(folder), **options}).folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def resumed_equals_unbroken(folder: Path, **options: Any) -> Path:
    """Assert that 6 steps equal 4 + resume + 2, bit for bit; the folder of the resumed run."""
    options = {"checkpointing_steps": 4, "logging_steps": 1, **options}
    whole = run(folder / "whole", **options)
    again = folder / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoint-6")
    shutil.rmtree(again / "unet")
    run(again, **options, resume_from_checkpoint="latest")
    assert same(weights(whole), weights(again))
    assert losses(whole) == losses(again)
    return again
