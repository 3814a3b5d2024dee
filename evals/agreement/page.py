"""The comparison with diffusers as rows, as a terminal table and as a page of the documentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pathline.interpolants import check_name

from .comparison import compare
from .defects import DEFECTS, MEASURED_WITH
from .matrix import MISSING, OUTSIDE, SHORT_RUN, settings
from .stock import NAMES, Setting

TOLERANCE = 1e-9
MOST_STEPS = 50
_STRIDE = 5
_ROUNDED_AT = (10, MOST_STEPS)  # where the class as released is run too
_ALWAYS = (1, 2, 3, 4, 5, SHORT_RUN - 1, SHORT_RUN, *_ROUNDED_AT)

HEAD = """# diffusers' schedulers against pathline's tables

Written by `pathline agree` (diffusers {version}); a test runs a sample of the same comparisons.

Every class below runs on a closed-form network (a mixture of three Gaussians), and so does our table on the levels of
that run, with the same start and the same draws. Compared is the final sample: the largest
|ours − theirs| / max(1, |theirs|). The stock code runs in float64 for this (every float32 in its module is replaced),
so that its formulas are compared and not its rounding; *float32* is how far the class as released is from our table in
float64 on the very same levels.

{coverage}
"""
COVERAGE_PART = """Each setting runs with 1–5, 10, 14, 15, 50 and every fifth number of steps up to 50, shared out so
that each class meets every number from 1 to 50; `pathline agree --all-steps` runs all of them."""
COVERAGE_ALL = "Each setting runs with every number of steps from 1 to 50."


@dataclass(frozen=True)
class ClassResult:
    """One class of diffusers.

    Attributes
    ----------
    name : str
    methods : names of ours
    settings, runs : how many were compared
    error : largest error of all runs
    rounding : largest deviation of the class as released
    worst : label and steps of the run with the largest error
    """

    name: str
    methods: tuple[str, ...]
    settings: int
    runs: int
    error: float
    rounding: float
    worst: str

    @property
    def verdict(self) -> str:
        """What the numbers say."""
        return "the same" if self.error < TOLERANCE else f"differs: {self.worst}"


def step_counts(setting: Setting, index: int = 0, stride: int = 1) -> list[int]:
    """Numbers of steps at which a setting is run: a few always, and every `stride`-th from `index` on."""
    possible = (n for n in range(setting.first, MOST_STEPS + 1) if setting.fits(n))
    return [n for n in possible if n in _ALWAYS or n % stride == index % stride]


def agreement(
    names: Sequence[str] | None = None, *, all_steps: bool = False, report: Callable[[str], None] | None = None
) -> list[ClassResult]:
    """Compare the settings of the named classes (default: all) and sum up by class.

    Raises
    ------
    ValueError
        A class that is not compared.
    """
    for name in names or ():
        check_name("compared class", name, NAMES)
    groups: dict[str, list[Setting]] = {}
    for setting in settings():
        if names is None or setting.name in names:
            groups.setdefault(setting.name, []).append(setting)
    results = []
    for name, members in groups.items():
        if report is not None:
            report(name)
        results.append(_one_class(name, members, all_steps))
    return results


def _one_class(name: str, members: list[Setting], all_steps: bool) -> ClassResult:
    error, rounding, runs, worst = 0.0, 0.0, 0, ""
    stride = 1 if all_steps else min(_STRIDE, len(members))  # so that the settings of a class share out all numbers
    for index, setting in enumerate(members):
        for steps in step_counts(setting, index, stride):
            found = compare(setting, steps, rounding=steps in _ROUNDED_AT)
            runs += 1
            if not found.error <= error:
                error, worst = found.error, f"{setting.label} with {steps} steps"
            if math.isfinite(found.rounding):
                rounding = max(rounding, found.rounding)
    methods = tuple(dict.fromkeys(setting.method for setting in members))
    return ClassResult(name, methods, len(members), runs, error, rounding, worst)


def print_agreement(results: Iterable[ClassResult]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="diffusers against pathline", title_justify="left")
    for heading in ("class", "method", "settings", "runs", "largest error", "float32", "verdict"):
        table.add_column(heading, overflow="fold")
    for row in results:
        numbers = (str(row.settings), str(row.runs), f"{row.error:.0e}", f"{row.rounding:.0e}")
        table.add_row(row.name, " ".join(row.methods), *numbers, row.verdict)
    Console().print(table, markup=False)


def agreement_page(results: Sequence[ClassResult], all_steps: bool = False) -> str:
    """The page as markdown; the scripts of the defects are run and their output is shown.

    Raises
    ------
    AssertionError
        The installed diffusers does not have a defect that is listed.
    """
    import diffusers

    head = HEAD.format(version=diffusers.__version__, coverage=COVERAGE_ALL if all_steps else COVERAGE_PART)
    return "\n".join([head, *_compared(results), *_left_out(), *_wrong()]) + "\n"


def _compared(results: Sequence[ClassResult]) -> list[str]:
    lines = [
        "| class | method | settings | runs | largest error | float32 | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        methods = ", ".join(f"`{m}`" for m in row.methods)
        numbers = f"{row.settings} | {row.runs} | {row.error:.0e} | {row.rounding:.0e}"
        lines.append(f"| {row.name} | {methods} | {numbers} | {row.verdict} |")
    lines += [
        "",
        f"Together {sum(row.runs for row in results)} runs of {sum(row.settings for row in results)} settings: "
        f"prediction types, spacings, Karras, exponential, beta and Lu levels, flow levels, orders, solver types, "
        f"final levels, schedules with zero terminal signal.",
        "",
    ]
    return lines


def _left_out() -> list[str]:
    lines = ["## Without a counterpart", "", "| in diffusers | why not here |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in MISSING.items()]
    lines += ["", "Not compared at all:", ""]
    for reason, names in OUTSIDE.items():
        lines.append(f"- {reason}: {', '.join(names)}")
    return [*lines, ""]


def _wrong() -> list[str]:
    lines = [
        "## Where diffusers is wrong",
        "",
        f"Each script needs diffusers alone, prints what is shown under it and was run with diffusers "
        f"{MEASURED_WITH}. None of these is reproduced here, but for the one that is also in the authors' own code.",
        "",
        "| | schedulers |",
        "|---|---|",
        *(f"| [{d.title}](#{d.key}) | {d.classes} |" for d in DEFECTS),
        "",
    ]
    for defect in DEFECTS:
        output = defect.run().strip()
        lines += [f'<a id="{defect.key}"></a>', f"### {defect.title}", "", f"{defect.classes}. {defect.reason}", ""]
        lines += ["```python", defect.code.strip(), "```", "", "```text", output, "```", ""]
    return lines
