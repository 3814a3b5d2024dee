"""The zoo page: every registered method with its facts, its picture and its reference, as markdown and PNG files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pathline.interpolants import check_name
from pathline.samplers import MethodInfo, Reference, adaptive_info, list_adaptive, list_methods
from pathline.samplers.adaptive import AdaptiveInfo
from pathline.samplers.files import replacing

from ..catalogue import orders_reached, short_citation, written_options
from ..plots import save_png
from .measurements import (
    DRAWS,
    EXACT_DRAWS,
    SLOPE,
    STARTS,
    Curve,
    Entry,
    adaptive_curve,
    bridge_curve,
    error_curve,
    family,
    law_curve,
    law_floor,
    measurable,
    measure,
)
from .pictures import draw_adaptive, draw_entry

HEAD = f"""# The solver zoo

Written by `pathline zoo`. Every registered method in its default configuration.

**Order** is the global order with exact history, over the declared configurations, and in brackets that from a cold
start; both are measured in `tests/test_samplers_order.py`. **Calls** are the network evaluations of N steps on a grid
that begins at pure noise and ends at the data. **Registers** are the state-sized tensors alive at once.

**Stability** (left): shaded is where errors do not grow on a linear network, for one step on a grid uniform in the
method's own variable; left of the dashed line the exact solution does not grow. For stochastic methods it is that of
the mean. **Error** (right) on the test bed `mixture` (eight Gaussians in 32 dimensions, exact network, linear path,
grid `logsnr`), against evaluations counted:

- deterministic methods: RMSE per value to where the exact flow carries the same {STARTS} starts. The last step of this
  grid begins at noise 0.01, so that nothing falls below 3e-4.
- stochastic methods: energy distance √(2E|X−Y| − E|X−X'| − E|Y−Y'|) between {DRAWS} samples and {EXACT_DRAWS} exact
  draws; dotted is what {DRAWS} exact draws reach.
- bridges: the same, for data = {SLOPE:g}·source + a draw of the mixture, on a Brownian bridge of variance up to 1/4,
  from exact states where the method begins.

Grey is `ddim`, for bridges `dbim`. One bed with an exact network ranks nothing: trained networks differ, see
`pathline sweep`.
"""


def write_zoo(
    folder: Path, names: Sequence[str] | None = None, report: Callable[[str], None] | None = None
) -> tuple[Path, int]:
    """Write `folder`.md and the pictures into `folder`; returns the page and the number of methods on it.

    Parameters
    ----------
    folder : Path
        Of the pictures; the page stands beside it.
    names : sequence of str, optional
        Methods of either registry; default all.
    report : function (name), optional
        Called before each method.

    Raises
    ------
    ValueError
        An unknown method.
    """
    for name in names or ():
        check_name("method", name, [*list_methods(), *list_adaptive()])
    chosen = [n for n in list_methods() if names is None or n in names]
    adaptive = [n for n in list_adaptive() if names is None or n in names]
    entries = []
    for name in chosen:
        if report is not None:
            report(name)
        entry = measure(name)
        save_png(draw_entry(entry, _reference(entry), law_floor() if entry.lawful else None), picture(folder, name))
        entries.append(entry)
    for name in adaptive:
        if measurable(name):
            if report is not None:
                report(name)
            curve = adaptive_curve(name)
            save_png(draw_adaptive(name, curve, ("ddim", error_curve("ddim"))), picture(folder, name))
    page = folder.with_suffix(".md")
    with replacing(page, "wb") as stream:
        stream.write(zoo_page(entries, [adaptive_info(n) for n in adaptive], folder.name).encode())
    return page, len(chosen) + len(adaptive)


def picture(folder: Path, name: str) -> Path:
    """File of a method's picture."""
    return folder / f"{anchor(name)}.png"


def anchor(name: str) -> str:
    """A method's name as file name and link target."""
    return name.replace("+", "p")


def zoo_page(entries: Sequence[Entry], adaptive: Sequence[AdaptiveInfo], folder: str) -> str:
    """The page as markdown; pictures are looked for in `folder` beside it."""
    parts = [HEAD, *_overview(entries)]
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(family(entry.info), []).append(entry)
    for title in sorted(groups):
        parts += [f"## {title}", ""]
        for entry in groups[title]:
            parts += _section(entry, folder)
    if adaptive:
        parts += ["## Methods that choose their own steps", ""]
        for info in adaptive:
            parts += _adaptive_section(info, folder)
    return "\n".join(parts).rstrip() + "\n"


def _reference(entry: Entry) -> tuple[str, Curve]:
    if entry.bridge:
        return "dbim", bridge_curve("dbim")
    return "ddim", law_curve("ddim") if entry.stochastic else error_curve("ddim")


def _overview(entries: Sequence[Entry]) -> list[str]:
    headings = ("method", "order", "calls", "kind", "needs", "reference")
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for entry in entries:
        info = entry.info
        cells = (
            f"[`{info.name}`](#{anchor(info.name)})",
            orders_reached(info),
            entry.calls,
            entry.kind,
            info.requires or "–",
            _cited(info),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _section(entry: Entry, folder: str) -> list[str]:
    info = entry.info
    variants = [f"`{_case(info, case.options)}` {case.order} ({case.cold_order})" for case in info.cases]
    facts = [
        f"Order {orders_reached(info)}",
        f"calls {entry.calls}",
        f"{entry.registers} registers",
        entry.kind,
    ]
    if info.requires:
        facts.append(f"needs {info.requires}")
    return [
        f'<a id="{anchor(info.name)}"></a>',
        f"### `{info.name}`",
        "",
        info.summary,
        "",
        " · ".join(facts) + ".",
        f"Options: `{written_options(info)}`." if info.options else "No options.",
        f"Orders (cold) of its configurations: {', '.join(variants)}.",
        f"Reference: {_full(info.reference)}",
        "",
        f"![stability and error of {info.name}]({folder}/{anchor(info.name)}.png)",
        "",
    ]


def _case(info: MethodInfo, options: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "default"


def _adaptive_section(info: AdaptiveInfo, folder: str) -> list[str]:
    kind = "stochastic" if info.stochastic else "deterministic"
    needs = f", needs {info.requires}" if info.requires else ""
    options = ", ".join(f"{key}={value}" for key, value in info.options.items())
    lines = [f'<a id="{anchor(info.name)}"></a>', f"### `{info.name}`", "", info.summary, ""]
    lines += [f"Adaptive, {kind}{needs}.", f"Options: `{options}`.", f"Reference: {_full(info.reference)}", ""]
    if measurable(info.name):
        lines += [f"![error of {info.name}]({folder}/{anchor(info.name)}.png)", ""]
    return lines


def _cited(info: MethodInfo) -> str:
    arxiv = info.reference.arxiv
    return f"[{short_citation(info)}](https://arxiv.org/abs/{arxiv})" if arxiv else short_citation(info)


def _full(reference: Reference) -> str:
    names = [_given_first(a) for a in re.split(r" and ", reference.authors)]
    people = ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
    arxiv = f", [arXiv:{reference.arxiv}](https://arxiv.org/abs/{reference.arxiv})" if reference.arxiv else ""
    return f"{people}, *{reference.title}*, {reference.venue} {reference.year}{arxiv}."


def _given_first(author: str) -> str:
    last, _, given = author.partition(",")
    return f"{given.strip()} {last.strip()}".strip() if given else author.strip()
