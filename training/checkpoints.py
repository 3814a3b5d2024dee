"""Checkpoints of a training run: written whole or not at all, sealed with checksums, found and checked again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import damage, read_json, replace_folder, seal, write_json
from .fingerprint import differences
from .options import RUN_ONLY, TrainOptions

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` optimiser steps."""
    return output_dir / f"checkpoint-{step}"


def temporary_folder(output_dir: Path, step: int) -> Path:
    """Folder in which that checkpoint is put together before it gets its name."""
    return output_dir / f".checkpoint-{step}.tmp"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first; unfinished ones have other names and do not appear."""
    if not output_dir.is_dir():
        return []
    found = [(match, path) for path in output_dir.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def finish_checkpoint(temporary: Path, target: Path, state: Mapping[str, Any]) -> None:
    """Add the trainer's state to a folder that holds all else, seal it, and give it its name."""
    write_json(temporary / STATE_FILE, state)
    seal(temporary)
    replace_folder(temporary, target)


def newest_sound(output_dir: Path) -> Path | None:
    """The newest checkpoint in a folder that is undamaged."""
    return _newest_sound(list_checkpoints(output_dir))


def _newest_sound(checkpoints: list[Path]) -> Path | None:
    return next((path for path in reversed(checkpoints) if damage(path) is None), None)


def remove_old(output_dir: Path, limit: int | None) -> None:
    """Remove the oldest checkpoints beyond `limit`, and what interrupted runs left unfinished."""
    for leftover in output_dir.glob(".checkpoint-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if limit is None:
        return
    for old in list_checkpoints(output_dir)[:-limit]:
        shutil.rmtree(old)


def find_checkpoint(output_dir: Path, wanted: str) -> Path:
    """Resolve `resume_from_checkpoint`, a folder or "latest", to a checkpoint that is undamaged.

    Raises
    ------
    ValueError
        If there is none, or it is damaged; the message names it and the newest sound one before it.
    """
    if wanted == "latest":
        found = list_checkpoints(output_dir)
        if not found:
            raise ValueError(f"resume_from_checkpoint is 'latest', but {output_dir} holds no checkpoint")
        chosen = found[-1]
    else:
        chosen = Path(wanted) if Path(wanted).is_dir() else output_dir / wanted
        if not chosen.is_dir():
            there = ", ".join(path.name for path in list_checkpoints(output_dir)) or "none"
            raise ValueError(f"checkpoint {wanted!r} does not exist; in {output_dir} there are: {there}")
    problem = damage(chosen)
    if problem is None:
        return chosen
    raise ValueError(f"checkpoint {chosen} is damaged: {problem}; {_advice(chosen)}")


def _advice(damaged: Path) -> str:
    match = _NAME.fullmatch(damaged.name)
    before = list_checkpoints(damaged.parent)
    if match:
        before = [path for path in before if int(path.name.split("-")[1]) < int(match[1])]
    sound = _newest_sound(before)
    if sound is None:
        return "there is no earlier sound one, so the run has to start again"
    return f"the one before it is sound: --resume_from_checkpoint {sound}"


def read_state(
    checkpoint: Path, options: Mapping[str, Any], sizes: Mapping[str, int], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a checkpoint's state, and check that it belongs to a run with these options, sizes and data.

    The number of steps may differ where the learning rate does not depend on it. `data` is a `fingerprint`.

    Raises
    ------
    ValueError
        If an option that changes what is learned, or the data, differs; all that differs is listed with both values.
    """
    state = read_json(checkpoint / STATE_FILE)
    before: dict[str, Any] = state["options"]
    # The batch per process may differ as long as the images per step do not.
    free = RUN_ONLY | {"train_batch_size", "gradient_accumulation_steps"}
    if str(options["lr_scheduler"]).startswith("constant"):
        free |= {"max_train_steps"}
    defaults = TrainOptions().to_dict()  # for options that are younger than the checkpoint
    pairs = [(key, before.get(key, defaults.get(key)), options[key]) for key in options if key not in free]
    pairs += [(key, state["sizes"].get(key), value) for key, value in sizes.items()]
    different = [f"{key} was {old!r}, is {new!r}" for key, old, new in pairs if old != new]
    if different:
        longer = any(key == "max_train_steps" and old != new for key, old, new in pairs)
        why = (
            " (the learning rate depends on max_train_steps; --lr_scheduler constant leaves it open)" if longer else ""
        )
        raise ValueError(
            f"checkpoint {checkpoint} belongs to a run with other options: {'; '.join(different)}{why}; use the same "
            "options, or another output_dir for a new run"
        )
    if "data" in state and (different := differences(state["data"], data)):
        raise ValueError(
            f"checkpoint {checkpoint} belongs to a run on other data: {'; '.join(different)}; use the same images, or "
            "another output_dir for a new run"
        )
    return state
