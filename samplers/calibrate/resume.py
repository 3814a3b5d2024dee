"""Finished parts of a calibration, kept in a folder so that one that was cut short goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..encoding import decode, encode
from ..files import replacing
from ..numerics import Array
from ..run_state import NonFiniteError
from ..table import Table
from .trajectories import Problem

_SETTINGS = "settings.json"


class PartsError(ValueError):
    """A folder of parts cannot be taken up; what is in it should stay."""


class Parts:
    """Results by name, each computed once; those in the folder of an earlier run are read and their calls charged.

    Every part is a file of its own, written whole or not at all when it is finished.

    Parameters
    ----------
    folder : path, optional
        Made with the first part. Without one nothing is kept.
    settings : mapping of JSON values, optional
        Everything that determines the parts.

    Raises
    ------
    ValueError
        The folder holds parts of a calibration with other settings.
    """

    def __init__(self, folder: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(dict(settings or {})))
        if folder is not None and folder.exists():
            _check_settings(folder, self.settings)

    def array(self, name: str, problem: Problem, compute: Callable[[], Array]) -> Array:
        """A part that is an array; `compute` calls the network of `problem`."""
        _, arrays = self._part(name, problem, lambda: ({}, {"array": np.asarray(compute())}))
        return arrays["array"]

    def table(self, name: str, problem: Problem, compute: Callable[[], Table]) -> Table:
        """A part that is a table.

        Raises
        ------
        ValueError
            What `compute` refused, now or in an earlier run.
        """

        def fitted() -> tuple[dict[str, Any], dict[str, Array]]:
            arrays: dict[str, Array] = {}
            try:
                return {"table": encode(compute(), arrays)}, arrays
            except (NonFiniteError, ValueError) as reason:  # the budget, or too few steps for this fit
                return {"refused": str(reason)}, {}

        content, arrays = self._part(name, problem, fitted)
        if "refused" in content:
            raise ValueError(content["refused"])
        return decode(content["table"], arrays)

    def file(self, name: str) -> Path | None:
        """Where a part that is not finished keeps its own state; None where nothing is kept."""
        if self.folder is None:
            return None
        self._begin(self.folder)
        return self.folder / name

    def remove(self) -> None:
        """Delete the folder: the calibration is finished."""
        if self.folder is not None and self.folder.exists():
            shutil.rmtree(self.folder)

    def _part(
        self, name: str, problem: Problem, compute: Callable[[], tuple[dict[str, Any], dict[str, Array]]]
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        file = (
            None
            if self.folder is None
            else self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
        )
        if file is not None and file.exists():
            content, arrays = _read(file)
            problem.charge(content["calls"])
            return content, arrays
        before = problem.calls
        content, arrays = compute()
        content = {"name": name, "calls": problem.calls - before, **content}
        if file is not None:
            self._write(file, content, arrays)
        return content, arrays

    def _begin(self, folder: Path) -> None:
        if not (folder / _SETTINGS).exists():
            with replacing(folder / _SETTINGS) as stream:
                json.dump(self.settings, stream, indent=1)

    def _write(self, file: Path, content: dict[str, Any], arrays: dict[str, Array]) -> None:
        from safetensors.numpy import save

        self._begin(file.parent)
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()} or {"empty": np.zeros(0)}
        with replacing(file, "wb") as stream:
            stream.write(save(whole, metadata={"part": json.dumps(content)}))


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="np") as f:
            arrays = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
            return json.loads((f.metadata() or {})["part"]), arrays
    except Exception as error:
        raise PartsError(f"{file} is not a readable part of a calibration ({error}); delete it to go on") from error


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    file = folder / _SETTINGS
    if not file.exists():
        if any(folder.iterdir()):
            raise PartsError(f"{folder} is not the folder of an interrupted calibration; choose another --out")
        return
    try:
        before = json.loads(file.read_text())
    except ValueError as error:
        raise PartsError(f"{file} is damaged ({error}); delete the folder to begin anew") from error
    changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    if changed:
        told = ", ".join(f"{key}={before.get(key)!r} (now {settings.get(key)!r})" for key in changed)
        raise PartsError(
            f"{folder} holds a calibration that was interrupted, with {told}; give the same settings to go on, another "
            "--out, or delete the folder to begin anew"
        )
