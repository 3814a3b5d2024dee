"""A stored row computed again from nothing but itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .records import Record, RecordFile
from .settings import Spec, SweepSettings
from .sweep import run_sweep


def settings_of(record: Record, source: str | None, device: str) -> SweepSettings:
    """The sweep of one cell that a record describes."""
    config, given = record["config"], record["run"].get("given", {})
    truth = config["truth"] or {"method": "unipc", "grid": "dense", "steps": 0}
    return SweepSettings(
        source or given.get("source", config["source"]["name"]),
        methods=(str(Spec(config["method"], config["options"])),),
        grids=(str(Spec(config["grid"], config["grid_options"])),),
        nfe=(config["nfe"],),
        seeds=(config["seed"],),
        runners=(config["runner"],),
        samples=config["samples"],
        features=config["features"]["space"],
        data=given.get("data"),
        truth=truth["method"],
        truth_grid=truth["grid"],
        truth_steps=truth["steps"],
        dtype=config["dtype"],
        guidance=config["guidance"],
        device=device,
    )


def rerun_record(
    records: str | Path, key: str, source: str | None = None, device: str = "cpu"
) -> dict[str, tuple[Any, Any]]:
    """Run the cell of one record again, from start noise to metrics.

    Returns
    -------
    dict
        Metric or fact -> (stored, now).

    Raises
    ------
    ValueError
        If no record or several begin with ``key``, or if source or reference are no longer what they were.
    """
    found = [r for r in RecordFile(records).load().records if r["id"].startswith(key)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} records of {records} have an id that begins with {key!r}; one is needed")
    stored = found[0]
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(stored, source, device)
        fresh = run_sweep(settings, Path(folder) / "records.jsonl", progress=False).records[0]
    if fresh["id"] != stored["id"]:
        changed = [k for k in stored["config"] if stored["config"][k] != fresh["config"].get(k)]
        raise ValueError(f"record {stored['id']} cannot be repeated: {', '.join(changed)} changed since it was made")
    pairs = {"nfe": (stored["facts"]["nfe"], fresh["facts"]["nfe"])}
    return pairs | {name: (stored["metrics"][name], fresh["metrics"].get(name)) for name in stored["metrics"]}
