"""The worker's command line: finds the program, reads its settings, runs it, and turns errors into exit codes.

Nothing here imports Keras: --help and wrong settings answer at once.
"""

import difflib
import importlib.metadata
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog
from pydantic_settings import BaseSettings

from worker import logs
from worker.core.errors import ConfigurationError, ExitCode, ReconstreamError
from worker.settings import CommonSettings, RunSettings, load, unknown_variables
from worker.tools import check, feed, score, watch

PROGRAM = "reconstream-worker"
DEFAULT_COMMAND = "run"
INTERRUPTED = 130

_log = structlog.get_logger("worker")


class _Command(NamedTuple):
    help: str
    settings: type[CommonSettings]
    start: Callable[..., int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        argv: without the program's name; None for this process's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(_overview())  # noqa: T201 - what was asked for
        return 0
    if arguments[:1] == ["--version"]:
        print(f"{PROGRAM} {importlib.metadata.version('reconstream')}")  # noqa: T201 - what was asked for
        return 0
    try:
        return _run(arguments)
    except ReconstreamError as error:
        print(f"{error}" if str(error).startswith(PROGRAM) else f"{PROGRAM}: {error}", file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout has seen enough; closing it must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.UNFINISHED)
    except SystemExit as exit_request:  # argparse, after --help
        return exit_request.code if isinstance(exit_request.code, int) else int(ExitCode.DEFECT)
    except Exception:  # noqa: BLE001
        # The last resort: whatever it is, it belongs in the log, and the exit status must say so.
        _log.exception("a defect: please report it")
        return int(ExitCode.DEFECT)


def _run(arguments: list[str]) -> int:
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else DEFAULT_COMMAND
    command = _COMMANDS.get(name)
    if command is None:
        close = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ConfigurationError(f"there is no command '{name}'; expected one of {', '.join(_COMMANDS)}.{hint}")
    logs.configure()  # for what goes wrong before the settings are known
    settings = load(command.settings, arguments, f"{PROGRAM} {name}")
    logs.configure(settings.log_format, settings.log_level)
    return command.start(settings)


def _start_worker(settings: RunSettings) -> int:
    _warn_of_unknown_variables()
    # Until app.run handles it: a stop that comes while libraries are imported is no failure, nothing was read.
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.STOPPED))
    try:
        _log.info("settings", **settings.masked())
        from worker import app  # noqa: PLC0415 - it builds the adapters, and those import slow libraries
    finally:
        signal.signal(signal.SIGTERM, before)
    return app.run(settings)


def _start_check(settings: check.Settings) -> int:
    return check.main(settings, _unknown_variables())


def _start_feed(settings: feed.Settings) -> int:
    _warn_of_unknown_variables()
    return feed.main(settings)


def _start_watch(settings: watch.Settings) -> int:
    _warn_of_unknown_variables()
    return watch.main(settings)


def _start_score(settings: score.Settings) -> int:
    _warn_of_unknown_variables()
    return score.main(settings)


def _unknown_variables() -> list[str]:
    programs: list[type[BaseSettings]] = [command.settings for command in _COMMANDS.values()]
    return unknown_variables(programs)


def _warn_of_unknown_variables() -> None:
    for line in _unknown_variables():
        _log.warning(line)


_COMMANDS = {
    "run": _Command("consume images, publish one verdict for each (the default)", RunSettings, _start_worker),
    "check": _Command("check settings, bundle, broker and topics; list every problem", check.Settings, _start_check),
    "feed": _Command("publish images from a folder, an .npz or the sample", feed.Settings, _start_feed),
    "watch": _Command("show verdicts as they come", watch.Settings, _start_watch),
    "score": _Command("score image files, without Kafka", score.Settings, _start_score),
}


def _overview() -> str:
    commands = "\n".join(f"  {name:<8} {command.help}" for name, command in _COMMANDS.items())
    return f"""\
usage: {PROGRAM} [COMMAND] [--help] [settings]
       {PROGRAM} --version

Judges image messages from Kafka with the model of a bundle.

commands:
{commands}

example:
  {PROGRAM} check --bundle models/current --kafka.bootstrap-servers kafka-1:9092
  {PROGRAM} run   --bundle models/current --kafka.bootstrap-servers kafka-1:9092

Every setting is a flag or a variable: --max-batch-size 64 or RECONSTREAM_MAX_BATCH_SIZE=64,
--kafka.client-id x or RECONSTREAM_KAFKA__CLIENT_ID=x. '{PROGRAM} COMMAND --help' lists them.

exit status: 0 stopped on request or done, 1 stopped with work unfinished (it will be read again),
2 wrong setting, 3 bad bundle, 4 Kafka refuses, 5 no progress, 6 Kafka unreachable,
7 too many dead letters, 70 a defect, {INTERRUPTED} a tool was interrupted"""


if __name__ == "__main__":
    sys.exit(main())
