"""The fault campaign: real workers, a real Kafka, and everything that goes wrong with them.

Each row breaks something while messages flow, then holds every message against its answers.  The schedule is
made from the seed and printed, so that a failure can be run again: --row NAME --mode MODE --seed N --scale X.
"""

import argparse
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec
from rich.console import Console
from rich.table import Table

from deploy.local_kafka.node import ClusterError
from tests.faults.campaign import MODES, Mode, Options, Result, failed_result, run_row, schedule_of
from tests.faults.fleet import FleetError
from tests.faults.rows import OTHERS, ROWS, Row

OUTPUT = Path("build/faults.json")

# Wide enough for the table where it goes to a file.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)


def say(text: str) -> None:
    """Print as it is, at once."""
    console.print(text, markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; 0 when every row is ok."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--scale", type=_scale, default=1.0, help="size of everything, above 0 to 1 (default 1)")
    parser.add_argument("--row", choices=[*ROWS, *OTHERS], metavar="NAME", help="one row; --list names them")
    parser.add_argument("--mode", choices=get_args(Mode), help="one delivery mode (default: both)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="of the schedules")
    parser.add_argument("--list", action="store_true", help="name the rows with their schedules, and end")
    given = parser.parse_args(arguments)
    rows = [{**ROWS, **OTHERS}[given.row]] if given.row else list(ROWS.values())
    modes: Sequence[Mode] = [given.mode] if given.mode else MODES
    if given.list:
        for row in rows:
            _print_schedule(row, given.seed, given.scale)
        return 0
    # So that an ended campaign takes its workers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results: list[Result] = []
    rates: dict[Mode, float] = {}
    began = time.monotonic()
    for mode in modes:
        options = Options(mode, given.seed, given.scale)
        for row in rows:
            say(f"\n{row.name}, {mode}: --row {row.name} --mode {mode} --seed {given.seed} --scale {given.scale:g}")
            _print_schedule(row, given.seed, given.scale)
            result, rate = _run(row, options)
            results.append(result)
            if row.name == "fault_free" and result.ok:
                options = Options(mode, given.seed, given.scale, rate)
                say(f"  {rate:,.0f} messages a second without faults")
                rates[mode] = rate
            for problem in result.problems:
                say(f"  PROBLEM {problem}")
            # After each row: what was measured survives whatever comes next.
            OUTPUT.parent.mkdir(parents=True, exist_ok=True)
            OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    console.print(_table(results))
    if len(rates) == len(MODES):
        ratio = rates["exactly_once"] / rates["at_least_once"]
        say(f"without faults exactly_once had {ratio:.2f} times at_least_once's rate; make bench compares them")
    say(f"{OUTPUT} written; {time.monotonic() - began:.0f} s; seed {given.seed}")
    return 0 if all(result.ok for result in results) else 1


def _run(row: Row, options: Options) -> tuple[Result, float]:
    try:
        return run_row(row, options, say)
    except (FleetError, ClusterError) as error:
        # One row that cannot even begin is a failed row, and no reason to leave the others out.
        return failed_result(row, options, str(error)), 0.0


def _print_schedule(row: Row, seed: int, scale: float) -> None:
    steps = schedule_of(row, seed, scale)
    say(f"{row.name}, seed {seed}, scale {scale:g}: {len(steps)} faults")
    for number, step in enumerate(steps, start=1):
        say(f"  {number}  {step}")


def _table(results: Sequence[Result]) -> Table:
    table = Table(title="Delivery under faults")
    names = [name for name in Result.__struct_fields__ if name != "problems"]
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name in {"name", "mode"} else "right")
    for result in results:
        cells = [f"{value}" for value in (getattr(result, name) for name in names[:-1])]
        table.add_row(*cells, "yes" if result.ok else "[bold red]NO[/]")
    return table


def _scale(text: str) -> float:
    scale = float(text)
    if not 0 < scale <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 1; got {text}")
    return scale


if __name__ == "__main__":
    sys.exit(main())
