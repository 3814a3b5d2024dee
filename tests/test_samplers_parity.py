"""Every stored output of an official implementation is reproduced to 1e-9 in float64."""

import pytest

from support.goldens import DIFFERENT, RULES, Parity, index, parities, reproduce

PARITIES = list(parities())


@pytest.mark.parametrize("parity", PARITIES, ids=lambda p: p.golden)
def test_official_output(parity: Parity) -> None:
    ours, official, table = reproduce(parity)
    error = ((ours - official).abs() / official.abs().clamp_min(1)).max()
    assert float(error) < 1e-9
    assert table.frame in ("point_mass", "velocity") or table.options["variant"] == "released"


def test_no_method_with_goldens_is_forgotten() -> None:
    assert {fnmatch_rule[1] for fnmatch_rule in RULES} == {p.method for p in PARITIES}
    assert len(PARITIES) == len(index()) - len(DIFFERENT)
