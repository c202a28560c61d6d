"""The fault campaign's short form: two workers meet one of each of the commonest faults, in both modes."""

import dataclasses
from pathlib import Path

import pytest

from tests.faults.campaign import MODES, Mode, Options, run_row
from tests.faults.rows import OTHERS

SCALE = 0.04

SHORT = OTHERS["short"]


@pytest.mark.parametrize("mode", MODES)
def test_every_message_is_accounted_for(mode: Mode, tmp_path: Path, client_name: str) -> None:
    options = Options(mode, seed=4, scale=SCALE, workers=2, folder=tmp_path)
    row = dataclasses.replace(SHORT, settings={**SHORT.settings, "kafka__client": client_name})
    result, _ = run_row(row, options, print)
    again = f"python -m tests.faults --row {SHORT.name} --mode {mode} --seed 4 --scale {SCALE}; logs: {tmp_path}"
    assert result.problems == [], f"{result}; {again}"
    assert result.published == 4000
    assert result.verdicts >= 4000
