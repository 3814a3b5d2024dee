"""What a sweep is asked to do: settings from a file or the command line, and the cells they unfold into."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from pathline.interpolants.errors import unknown_name
from pathline.samplers.fitted import is_table

RUNNERS = ("sample", "scheduler")
DTYPES = ("float32", "float64")
ANY_NFE = "{nfe}"
"""In the name of a table's file: stands for each budget."""


class Spec(NamedTuple):
    """A name with options, as in ``dpm++:order=3,variant=exact``."""

    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}:" + ",".join(f"{k}={_text(v)}" for k, v in sorted(self.options.items()))


class Cell(NamedTuple):
    """One result to be produced."""

    runner: str
    method: Spec
    grid: Spec
    nfe: int
    seed: int

    def config(self) -> dict[str, Any]:
        """The cell's part of a record's configuration."""
        return {
            "runner": self.runner,
            "method": self.method.name,
            "options": self.method.options,
            "grid": self.grid.name,
            "grid_options": self.grid.options,
            "nfe": self.nfe,
            "seed": self.seed,
        }

    @property
    def table_file(self) -> Path | None:
        """The file of the table that is run; None for a method."""
        return Path(self.method.name.replace(ANY_NFE, str(self.nfe))) if is_table(self.method.name) else None

    def __str__(self) -> str:
        return f"{self.method} on {self.grid}, NFE {self.nfe}, seed {self.seed}, {self.runner}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def parse_spec(text: str) -> Spec:
    """Read ``name`` or ``name:key=value,key=value``; values are JSON where they parse as JSON, else strings.

    Raises
    ------
    ValueError
        If an option is not of the form key=value or is given twice.
    """
    name, _, tail = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ValueError(f"options of {name!r} are written key=value, got {part!r} in {text!r}")
        if key.strip() in options:
            raise ValueError(f"option {key.strip()!r} is given twice in {text!r}")
        try:
            options[key.strip()] = json.loads(value)
        except ValueError:
            word = value.strip()
            options[key.strip()] = {"True": True, "False": False, "None": None}.get(word, word)
    if not name.strip():
        raise ValueError(f"a name is missing in {text!r}")
    return Spec(name.strip(), options)


def parse_integers(text: str) -> tuple[int, ...]:
    """Read ``3,5,8`` or ``0-4`` or a mixture into integers, in the order given, without repeats."""
    values: list[int] = []
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"integers are written as in '3,5,8' or '0-4', got {text!r}")
        stop = int(last) if dash else int(first)
        if stop < int(first):
            raise ValueError(f"the range {part!r} in {text!r} runs backwards")
        values += [v for v in range(int(first), stop + 1) if v not in values]
    return tuple(values)


_OWN = Spec("own", {})  # levels of a table


@dataclass(frozen=True)
class SweepSettings:
    """Everything a sweep is told. Fields named in ``EXECUTION`` change how it runs but not what it finds.

    Attributes
    ----------
    source : str
        ``bed:<name>``, a folder of a trained pipeline, or a diffusers pipeline name.
    methods, grids : tuple of str
        Specs as in ``dpm++:order=3``. A method may be the file of a table, which has its own levels and runs at its own
        number of calls only; ``{nfe}`` in its name stands for each budget, for tables of one kind.
    nfe : tuple of int
        Upper bounds on counted network evaluations per sample.
    seeds : tuple of int
        One independent set of start noises each.
    runners : tuple of str
        "sample" (library) and/or "scheduler" (diffusers loop).
    samples : int
        Samples per cell, at least 2.
    features : str
        Feature space of the distances, see :func:`pathline.evals.features.make_features`.
    data : str or None
        Reference: statistics .npz, image folder, sample .npz or a data set name; default is the source's own.
    truth : str
        Method of the converged reference, with ``truth_steps`` steps (0: no reference) on ``truth_grid``, a grid or
        "dense" (uniform in lam over a wider range).
    guidance : float or None
        Classifier-free guidance scale.
    force : bool
        Run tables that were fitted to another network or guidance too.
    """

    source: str
    methods: tuple[str, ...] = ("ddim", "dpm++", "unipc")
    grids: tuple[str, ...] = ("logsnr",)
    nfe: tuple[int, ...] = (5, 10, 20)
    seeds: tuple[int, ...] = (0,)
    runners: tuple[str, ...] = ("sample",)
    samples: int = 512
    features: str = "pca:32"
    data: str | None = None
    truth: str = "unipc:order=3"
    truth_grid: str = "dense"
    truth_steps: int = 200
    dtype: str = "float32"
    guidance: float | None = None
    batch_size: int = 256
    device: str = "cpu"
    keep: int = 32
    force: bool = False

    def __post_init__(self) -> None:
        for key in ("methods", "grids", "nfe", "seeds", "runners"):
            value = getattr(self, key)
            if isinstance(value, (str, int)) or not value:
                raise ValueError(f"{key} must be a non-empty list, got {value!r}")
            object.__setattr__(self, key, tuple(value))
        for key, least in (("samples", 2), ("batch_size", 1), ("keep", 0), ("truth_steps", 0)):
            if not isinstance(getattr(self, key), int) or getattr(self, key) < least:
                raise ValueError(f"{key} must be an integer of at least {least}, got {getattr(self, key)!r}")
        for budget in self.nfe:
            if not isinstance(budget, int) or budget < 1:
                raise ValueError(f"nfe must hold positive integers, got {budget!r}")
        for seed in self.seeds:
            if not isinstance(seed, int) or not 0 <= seed < 2**63:
                raise ValueError(f"seeds must be integers from 0 to 2^63 - 1, got {seed!r}")
        for runner in self.runners:
            if runner not in RUNNERS:
                raise unknown_name("runner", runner, RUNNERS)
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.guidance is not None and not (isinstance(self.guidance, (int, float)) and math.isfinite(self.guidance)):
            raise ValueError(f"guidance must be a finite number, got {self.guidance!r}")
        if self.guidance is not None and "scheduler" in self.runners:
            raise ValueError("guidance is applied by the runner 'sample' only; leave out the runner 'scheduler'")

    def cells(self) -> Iterator[Cell]:
        """All cells, in the order in which they are run (seed outermost, so that early stops stay comparable)."""
        methods = [parse_spec(text) for text in self.methods]
        grids = [parse_spec(text) for text in self.grids]
        for seed, runner, method in itertools.product(self.seeds, self.runners, methods):
            for grid, nfe in itertools.product([_OWN] if is_table(method.name) else grids, self.nfe):
                yield Cell(runner, method, grid, nfe, seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values of all fields."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


EXECUTION = ("batch_size", "device", "keep", "force")


def load_settings(
    file: str | Path | None, overrides: Mapping[str, Any], names: Sequence[str] | None = None
) -> SweepSettings:
    """Settings of a JSON or TOML file with overrides on top (those that are not None).

    Raises
    ------
    ValueError
        If the file is missing, damaged or holds an unknown key, or if no source is named.
    """
    known = names or [f.name for f in fields(SweepSettings)]
    values: dict[str, Any] = {}
    if file is not None:
        values = _read(Path(file))
        for key in values:
            if key not in known:
                raise unknown_name(f"setting in {file}", key, known)
    values |= {k: v for k, v in overrides.items() if v is not None}
    if "source" not in values:
        raise ValueError("no source is named: give a trained folder, a diffusers pipeline or bed:<name>")
    return SweepSettings(**values)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"settings file {path} does not exist")
    try:
        if path.suffix == ".toml":
            import tomllib

            return tomllib.loads(path.read_text(encoding="utf-8"))
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"settings file {path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"settings file {path} must hold one table of keys and values")
    return values
