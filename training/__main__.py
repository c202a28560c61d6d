"""reconstream-train: command line in, exit code out.

Exit codes are the worker's (worker.core.errors.ExitCode), and 130 after Ctrl-C as shells have it.
"""

import sys
from collections.abc import Sequence

from rich.console import Console

from training import commands, compare, settings
from training.command import PROGRAM
from worker.core.errors import ExitCode, ReconstreamError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: the arguments after the program's name; None: those of the process.

    Returns:
        the exit code.
    """
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console = Console()
    try:
        command = settings.parse(sys.argv[1:] if argv is None else argv)
        match command:
            case settings.Fit():
                commands.fit(command, console)
            case settings.Evaluate():
                commands.evaluate(command, console)
            case settings.Calibrate():
                commands.calibrate(command, console)
            case settings.Inspect():
                commands.inspect(command, console)
            case settings.Benchmark():
                compare.benchmark(command, console)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else ExitCode.BAD_CONFIGURATION
    except ReconstreamError as error:
        errors.print(f"{PROGRAM}: {error}", style="red")
        return error.exit_code
    except KeyboardInterrupt:
        errors.print(f"{PROGRAM}: interrupted; no half-written bundle was left behind.")
        return INTERRUPTED
    return ExitCode.STOPPED


if __name__ == "__main__":
    sys.exit(main())
