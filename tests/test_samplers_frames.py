"""Every table is exact in its frame, and no coefficient can be wrong without being noticed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pathline.interpolants import CosinePath, EDMPath, GaussianPath, LinearPath, VPPath
from pathline.samplers import (
    Case,
    InvariantError,
    Nodes,
    Program,
    Table,
    build_table,
    check,
    make_nodes,
    method_info,
    residuals,
)
from support.problems import PATH, gaussian_methods, uniform_nodes

CASES = [(name, case) for name in gaussian_methods() for case in method_info(name).cases]
PATHS = [VPPath(), LinearPath(), CosinePath(), EDMPath()]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda v: getattr(v, "options", v))
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_exact_in_its_frame(name: str, case: Case, path: GaussianPath) -> None:
    for steps in (1, 2, 3, 7, 30):
        table = build_table(name, make_nodes(path, "logsnr", steps), **case.options)
        if table.frame.startswith("none"):
            continue  # what these promise is their order: test_samplers_order.py
        assert residuals(table).max() < 1e-9 * max(1.0, table.start.noise)


def test_which_methods_promise_no_frame() -> None:
    """A frame that is given up is a decision, not an accident."""
    tables = {(n, str(c.options)): build_table(n, uniform_nodes("lam", 6), **c.options) for n, c in CASES}
    free = {name for (name, _), table in tables.items() if table.frame.startswith("none")}
    assert free == {"sde", "unipc-heavy-ball"}


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda v: getattr(v, "options", v))
def test_every_mutation_is_caught(name: str, case: Case) -> None:
    """Any coefficient moved by 1e-3 breaks the invariant of the table."""
    nodes = [uniform_nodes("lam", 6), make_nodes(PATH, "karras", 6)]
    if name in ("euler", "heun"):
        nodes.append(make_nodes(LinearPath(), "time", 5))
    for n in nodes:
        table = build_table(name, n, **case.options)
        check(table)
        if table.frame.startswith("none"):
            continue
        for where, value in table.coefficients():
            assert not isinstance(value, np.ndarray)
            if table.law == "weak" and only_law_sees(table, where):
                continue  # measured by test_weak_order and by comparison with official code
            with pytest.raises(InvariantError):
                check(table.with_coefficient(where, value + 1e-3))


def only_law_sees(table: Table, where: tuple[int, int, int]) -> bool:
    """Whether a coefficient belongs to a fresh draw or a noise output, which the mean of point masses does not see."""
    value = table.rows[where[0]].updates[where[1]].terms[where[2]][0]
    return any(value in row.noises or (value == row.output and row.form == "noise") for row in table.rows)


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda v: getattr(v, "options", v))
def test_labels_lie_on_the_path(name: str, case: Case) -> None:
    """A row's label, signal, noise and rates are one point of the path: a wrong label cannot hide."""
    for path, grid in itertools.product((PATH, LinearPath(), CosinePath()), ("logsnr", "time")):
        for row in build_table(name, make_nodes(path, grid, 6), **case.options).rows:
            point = path.at(row.level.time)
            assert float(point.signal) == pytest.approx(row.level.signal, abs=1e-12)
            assert float(point.noise) == pytest.approx(row.level.noise, abs=1e-12)
            if row.level.signal_rate is not None:
                assert float(point.signal_rate) == pytest.approx(row.level.signal_rate, rel=1e-12)


def wrong_table(nodes: Nodes) -> Table:
    program = Program(nodes)
    x = program.state
    for i in range(nodes.steps):
        x = program.let(0.5 * x + 0.4 * program.query(x, i))
    return program.finish(x)


def test_a_wrong_table_names_row_and_residual() -> None:
    with pytest.raises(InvariantError, match=r"residual .* at the query of row 1"):
        check(wrong_table(make_nodes(PATH, "logsnr", 3)))


def test_a_free_table_passes_but_reports_its_residual() -> None:
    table = wrong_table(make_nodes(PATH, "logsnr", 3))
    free = replace(table, frame="none: learned")
    check(free)
    assert residuals(free)[1] > 0.01


def test_unknown_frame_is_refused() -> None:
    table = build_table("ddim", make_nodes(PATH, "logsnr", 3))
    with pytest.raises(ValueError, match="unknown frame 'pointmass'"):
        check(replace(table, frame="pointmass"))


def test_law_sees_a_wrong_noise_amplitude() -> None:
    table = build_table("ddim", make_nodes(PATH, "logsnr", 4), eta=1.0)
    noise_terms = [
        (w, c)
        for w, c in table.coefficients()
        if table.rows[w[0]].updates[w[1]].terms[w[2]][0] in table.rows[w[0]].noises
    ]
    assert noise_terms
    for where, value in noise_terms:
        with pytest.raises(InvariantError):
            check(table.with_coefficient(where, value * 1.01))
