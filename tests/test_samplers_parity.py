"""Every stored output of an official implementation is reproduced to 1e-9 in float64."""

from fnmatch import fnmatch

import pytest

from support.goldens import ADAPTIVE, PREDICTED, RULES, Parity, index, parities, reproduce

PARITIES = list(parities())


@pytest.mark.parametrize("parity", PARITIES, ids=lambda p: p.golden)
def test_official_output(parity: Parity) -> None:
    ours, official, table = reproduce(parity)
    error = ((ours - official).abs() / official.abs().clamp_min(1)).max()
    assert float(error) < 1e-9
    free = (
        parity.method in ("sde", "dpm-solver-v3")
        or "released" in table.options.values()
        or "first_velocity" in dict(parity.options)
    )
    assert free or table.frame in ("point_mass", "velocity")


def test_no_method_with_goldens_is_forgotten() -> None:
    assert {fnmatch_rule[1] for fnmatch_rule in RULES} == {p.method for p in PARITIES}
    elsewhere = {
        n for n, c in index().items() if c["family"] == "bridge" or any(fnmatch(n, p) for p in (*ADAPTIVE, *PREDICTED))
    }
    assert {p.golden for p in PARITIES} == set(index()) - elsewhere
