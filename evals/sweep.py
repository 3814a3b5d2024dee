"""Sweeps: methods x grids x budgets x seeds on one source, resumable and shared among processes."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pathline.interpolants import unknown_name
from pathline.samplers import NonFiniteError, Table, list_grids, method_info
from pathline.samplers.calibrate.extractor import check_judge

from .files import digest, file_digest, write_text
from .judge import Judge
from .previews import preview_path, save_preview
from .records import Record, RecordFile, make_record
from .runners import Outcome, check_budgeted, check_table_fits, run_cell, table_of
from .settings import ANY_NFE, Cell, SweepSettings
from .sources import Source, open_source
from .truth import Truth, check_truth, load_truth, truth_config
from .world import World, join_world

Say = Callable[[str], None]


@dataclass
class SweepResult:
    """What a sweep found: all records of its cells in file order, and sentences for the user."""

    path: Path
    records: list[Record] = field(default_factory=list)
    new: int = 0
    notes: list[str] = field(default_factory=list)


def run_sweep(
    settings: SweepSettings,
    out: str | Path,
    *,
    source: Source | None = None,
    progress: bool = True,
    say: Say | None = None,
) -> SweepResult:
    """Run every cell of a sweep that has no record yet.

    Each finished cell is appended to ``out`` at once, so an interrupted sweep goes on where it stopped. Started by
    ``accelerate launch`` on several processes, cells are divided among them and the records are the same.

    Parameters
    ----------
    settings : SweepSettings
    out : path
        Records file (JSON lines). Samples, cached references and the resolved settings are kept beside it.
    source : Source, optional
        Already opened; default is ``settings.source``.
    progress : bool
        Show a progress bar (main process only).
    say : callable, optional
        Receives sentences meant for the user; default: they are only collected in the result.

    Returns
    -------
    SweepResult

    Raises
    ------
    ValueError
        Before any network call: unknown names, impossible settings, unreadable source or reference.
    """
    world = join_world(settings.device)
    try:
        return _Sweep(settings, Path(out), source, world, progress, say or (lambda text: None)).run()
    finally:
        world.close()


class _Sweep:
    """The steps of one sweep, in order."""

    def __init__(
        self, settings: SweepSettings, out: Path, source: Source | None, world: World, progress: bool, say: Say
    ) -> None:
        self.settings, self.out, self.world = settings, out, world
        self.file = RecordFile(out)
        self.progress = progress and world.is_main
        self.result = SweepResult(out)
        self._say = say
        self.cache = out.with_name(f"{out.stem}-cache")
        check_names(settings)
        self.source = source or open_source(settings.source, settings.device)
        for cell in settings.cells():
            check_table_fits(self.source, cell, settings)
        self.tables = self._plan()
        for _, table in self.tables.values():
            check_judge(table, settings.features)
        if settings.truth_steps:
            check_truth(self.source, settings)

    def note(self, text: str) -> None:
        if text not in self.result.notes:
            self.result.notes.append(text)
            if self.world.is_main:
                self._say(text)

    def _plan(self) -> dict[str, tuple[Cell, Table]]:
        """Compile every cell; a budget too small for a method drops that cell with a note."""
        tables: dict[str, tuple[Cell, Table]] = {}
        refused: list[str] = []
        elsewhere: list[tuple[Cell, str]] = []  # stored tables at budgets that are not theirs
        for cell in self.settings.cells():
            if cell.runner == "scheduler":
                self._check_scheduler_runner()
            try:
                tables[str(cell)] = (cell, table_of(self.source, cell))
            except ValueError as error:
                text = f"left out {cell}: {error}"
                if cell.table_file is None:
                    refused.append(text)
                else:
                    elsewhere.append((cell, text))
        run = {cell.method.name for cell, _ in tables.values()}
        refused += [text for cell, text in elsewhere if cell.method.name not in run or ANY_NFE in cell.method.name]
        if not tables:
            raise ValueError("no cell can be run; " + refused[0])
        for text in refused:
            self.note(text)
        return tables

    def _check_scheduler_runner(self) -> None:
        if self.source.network is None:
            raise ValueError(
                f"no diffusers loop samples {self.source.name} on the same path (only velocity on the linear path, and "
                "noise, v or data on a discrete one); use the runner 'sample'"
            )

    def run(self) -> SweepResult:
        if self.world.is_main:
            for damage in self.file.set_aside().damaged:
                self.note(
                    f"{self.out}, line {damage.line} is damaged ({damage.reason}); it was moved to "
                    f"{self.out.name}.damaged and is computed again if it belongs to this sweep"
                )
            self._write_settings()
        judge = self._judge()
        for text in judge.advice():
            self.note(text)
        protocol = self._protocol(judge)
        self.world.wait()  # the file is whole before anyone reads it, and read by all before anyone appends
        done = self.file.load().ids
        self.world.wait()
        configs = [(cell, table, {**_cell_config(cell), **protocol}) for cell, table in self.tables.values()]
        pending = [entry for entry in configs if digest(entry[2]) not in done]
        for seed in self.settings.seeds:
            self._run_seed(seed, [e for e in pending if e[0].seed == seed], judge)
        self.world.wait()
        wanted = {digest(config) for _, _, config in configs}
        self.result.records = [r for r in self.file.load().records if r["id"] in wanted]
        return self.result

    def _judge(self) -> Judge:
        """The main process first: the others then find features of the reference on disk."""
        judge = Judge(self.source, self.settings, self.cache) if self.world.is_main else None
        self.world.wait()
        judge = judge or Judge(self.source, self.settings, self.cache)
        for _, table in self.tables.values():
            check_judge(table, judge.space.name, judge.space.network)
        return judge

    def _protocol(self, judge: Judge) -> dict[str, Any]:
        """Everything besides the cell that determines its numbers."""
        source, settings = self.source, self.settings
        return {
            "source": {"name": source.name, "kind": source.kind, "id": source.identity},
            "path": source.path.config() if source.path.name != "discrete" else _short(source.path.config()),
            "prediction": source.prediction,
            "labels": source.labels,
            "samples": settings.samples,
            "dtype": settings.dtype,
            "guidance": settings.guidance,
            "truth": truth_config(source, settings) if settings.truth_steps else None,
            **judge.config(),
        }

    def _write_settings(self) -> None:
        text = json.dumps(self.settings.to_dict(), indent=2, sort_keys=True) + "\n"
        write_text(self.out.with_name(f"{self.out.stem}.settings.json"), text)

    def _run_seed(self, seed: int, pending: list[tuple[Cell, Table, dict[str, Any]]], judge: Judge) -> None:
        if not pending:
            return
        truth, converged = self._truth(seed, judge)
        mine = self.world.share(pending)
        total = sum(table.evaluations for _, table, _ in mine) * self.settings.samples
        with self._bar(total, f"sweep, seed {seed}") as bar:
            for cell, table, config in mine:
                if bar is not None:
                    bar.set_postfix_str(f"{cell.method} {cell.nfe} {cell.runner}", refresh=False)
                step = (lambda n, e=table.evaluations: bar.update(n * e)) if bar is not None else None
                self._run_cell(cell, table, config, judge, truth, converged, step)

    def _truth(self, seed: int, judge: Judge) -> tuple[Truth | None, float | None]:
        if not self.settings.truth_steps:
            return None, None
        with self._bar(self.settings.samples, f"converged reference, seed {seed}") as bar:
            step = bar.update if bar is not None else None
            truth = load_truth(self.source, self.settings, seed, self.cache, self.world, step)
        if self.world.is_main and not preview_path(self.out, f"truth-{truth.key}").exists():
            save_preview(self.out, f"truth-{truth.key}", truth.samples, self.settings.keep)
        return truth, judge.frechet(truth.samples)

    def _run_cell(
        self,
        cell: Cell,
        table: Table,
        config: dict[str, Any],
        judge: Judge,
        truth: Truth | None,
        converged: float | None,
        step: Callable[[int], None] | None,
    ) -> None:
        facts: dict[str, Any] = {
            "order": declared_order(cell),
            "stochastic": table.stochastic,
            "frame": table.frame,
            "planned": table.evaluations,
        }
        metrics: dict[str, float | None] = {}
        began = datetime.now(UTC).isoformat(timespec="seconds")
        start = time.perf_counter()
        try:
            outcome = run_cell(self.source, cell, self.settings, step)
        except NonFiniteError as error:
            facts |= {"nfe": float(table.evaluations), "error": str(error)}
            self.note(f"{cell} diverged: {error}")
        else:
            facts |= {"nfe": outcome.nfe, "network_rows": outcome.network_rows}
            metrics = judge.score(outcome.samples)
            if truth is not None:
                facts["truth"] = f"truth-{truth.key}"
                metrics |= _against_truth(truth, converged, outcome, table)
        run = run_facts(self.settings, self.world, began) | {"seconds": round(time.perf_counter() - start, 4)}
        record = make_record(config, facts, metrics, run)
        if "error" not in facts:
            save_preview(self.out, record["id"], outcome.samples, self.settings.keep)
        self.file.append(record)
        self.result.new += 1

    def _bar(self, total: int, title: str) -> AbstractContextManager[Any]:
        if not self.progress:
            return nullcontext(None)
        from tqdm.auto import tqdm

        return tqdm(total=total, desc=title, unit="eval", unit_scale=True, leave=True)


def _against_truth(truth: Truth, converged: float | None, outcome: Outcome, table: Table) -> dict[str, float | None]:
    """Error to the converged samples; only of methods that are a function of the start noise."""
    error = None if table.stochastic else truth.error(outcome.samples)
    return {"rmse": error, "truth_gap": truth.gap, "fd_converged": converged}


def _cell_config(cell: Cell) -> dict[str, Any]:
    return cell.config() | ({} if cell.table_file is None else {"table": file_digest([cell.table_file])})


def check_names(settings: SweepSettings) -> None:
    """Refuse unknown methods, method options and grids at once, before anything is opened.

    Raises
    ------
    ValueError
        Listing the nearest valid names, or for a method that takes no budget what to do instead.
    """
    for cell in settings.cells():
        if cell.table_file is not None:
            continue
        check_budgeted(cell)
        info = method_info(cell.method.name)
        for key in cell.method.options:
            if key not in (*info.options, "afs"):
                raise unknown_name(f"option of method {cell.method.name!r}", key, [*info.options, "afs"])
        if cell.grid.name not in list_grids():
            raise unknown_name("grid", cell.grid.name, list_grids())


def declared_order(cell: Cell) -> int | None:
    """Order the registry declares for the cell's options; None for tables and where no declared case has them."""
    if cell.table_file is not None:
        return None
    info = method_info(cell.method.name)
    given = {k: v for k, v in cell.method.options.items() if k != "afs"}
    for case in info.cases:
        if {**info.options, **case.options} == {**info.options, **given}:
            return case.order
    return info.order if not given else None


def run_facts(settings: SweepSettings, world: World, began: str) -> dict[str, Any]:
    """Circumstances that must not change a result: versions, machine, batch, processes."""
    versions = {"python": platform.python_version()}
    for package in ("pathline", "torch", "numpy", "diffusers"):
        versions[package] = importlib.metadata.version(package)
    return {
        "started": began,
        "given": {"source": settings.source, "data": settings.data},
        "versions": versions,
        "machine": platform.machine(),
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "batch_size": settings.batch_size,
        "processes": world.size,
    }


def _short(config: dict[str, Any]) -> dict[str, Any]:
    """A discrete path by name, length and hash instead of its thousand numbers."""
    levels = config["alphas_cumprod"]
    return {"name": config["name"], "steps": len(levels), "id": digest([f"{v:.9e}" for v in levels])}
