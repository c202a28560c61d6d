import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker import __main__ as cli
from worker import logs
from worker.adapters.topic_rules import Problem
from worker.core.errors import (
    BundleError,
    ConfigurationError,
    ExitCode,
    KafkaRefused,
    KafkaUnreachable,
    ReconstreamError,
    ScorerBroken,
    TooManyDeadLetters,
)
from worker.settings import RunSettings
from worker.tools import check

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2"
HEAVY = ("tensorflow", "keras", "jax", "matplotlib")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("RECONSTREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    # Logging belongs to the whole process; tests/unit/test_logs.py tests it.
    monkeypatch.setattr(logs, "configure", lambda *_: None)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stands in for worker.app: remembers its settings, answers 0 or raises what it is told."""
    state = types.SimpleNamespace(settings=None, error=None)

    def run(settings: RunSettings) -> int:
        state.settings = settings
        if state.error is not None:
            raise state.error
        return 0

    module = types.ModuleType("worker.app")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "worker.app", module)
    monkeypatch.setattr("worker.app", module, raising=False)
    return state


def python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, in an environment without our variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RECONSTREAM_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def worker(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program; its last line on stdout lists the heavy modules that it imported."""
    code = (
        "import sys, json\nfrom worker.__main__ import main\nstatus = main(sys.argv[1:])\n"
        f"print('\\n' + json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\nsys.exit(status)"
    )
    return python(code, *arguments, **variables)


def test_the_worker_runs_by_default(app: types.SimpleNamespace) -> None:
    assert cli.main(["--bundle", "b", "--max-batch-size", "7"]) == 0
    assert app.settings.max_batch_size == 7
    assert cli.main(["run", "--bundle", "b", "--max-batch-size", "8"]) == 0
    assert app.settings.max_batch_size == 8


def test_a_subcommand_reads_the_environment(app: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONSTREAM_BUNDLE", "from-environment")
    monkeypatch.setenv("RECONSTREAM_KAFKA__CLIENT_ID", "camera-hall")
    assert cli.main(["run"]) == 0
    assert app.settings.bundle == Path("from-environment")
    assert app.settings.kafka.client_id == "camera-hall"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("why"), 2),
        (BundleError("why"), 3),
        (KafkaRefused("why"), 4),
        (KafkaUnreachable("why"), 6),
        (TooManyDeadLetters("why"), 7),
        (ScorerBroken("why"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_status(
    error: BaseException, status: int, app: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    app.error = error
    assert cli.main(["run", "--bundle", "b"]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    if isinstance(error, ReconstreamError):
        assert err.splitlines()[-1] == "reconstream-worker: why"


def test_a_defect_is_logged_with_its_traceback() -> None:
    code = (
        "import sys, types\nfrom worker.__main__ import main\nmodule = types.ModuleType('worker.app')\n"
        "module.run = lambda settings: 1 / 0\nsys.modules['worker.app'] = module\n"
        "import worker\nworker.app = module\nsys.exit(main(sys.argv[1:]))"
    )
    done = python(code, "run", "--bundle", "b", "--kafka.client-id", "c")
    assert done.returncode == 70
    assert done.stdout == ""
    settings, defect = map(json.loads, done.stderr.splitlines())
    assert settings["event"] == "settings"
    assert settings["kafka"]["client_id"] == "c"
    assert "ZeroDivisionError" in defect["exception"]


def test_the_effective_configuration_is_logged_once_and_masked() -> None:
    code = (
        "import sys, types\nfrom worker.__main__ import main\nmodule = types.ModuleType('worker.app')\n"
        "module.run = lambda settings: 0\nsys.modules['worker.app'] = module\n"
        "import worker\nworker.app = module\nsys.exit(main(sys.argv[1:]))"
    )
    done = python(
        code,
        "run",
        "--bundle=b",
        "--kafka.security-protocol=SASL_PLAINTEXT",
        "--kafka.sasl-mechanism=PLAIN",
        "--kafka.sasl-username=app",
        RECONSTREAM_KAFKA__SASL_PASSWORD=PASSWORD,
        RECONSTREAM_MAX_BATCHSIZE="1",
    )
    assert done.returncode == 0
    assert PASSWORD not in done.stderr + done.stdout
    warning, settings = map(json.loads, done.stderr.splitlines())
    assert warning["level"] == "warning"
    assert "RECONSTREAM_MAX_BATCH_SIZE" in warning["event"]
    assert settings["kafka"]["sasl_password"] == "**********"


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["feed"], ["watch"], ["score"]])
def test_help_teaches_without_tensorflow(command: list[str]) -> None:
    done = worker(*command, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "xample:" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []
    if command:
        assert "[env: RECONSTREAM_LOG_LEVEL]" in " ".join(done.stdout.split())
    else:
        for name in ("run", "check", "feed", "watch", "score"):
            assert f"\n  {name} " in done.stdout


def test_settings_errors_come_without_tensorflow() -> None:
    done = worker("check", "--max-batch-size", "0")
    assert done.returncode == 2
    assert "--max-batch-size" in done.stderr
    assert "--bundle" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    name, number = capsys.readouterr().out.split()
    assert name == "reconstream-worker"
    assert number[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ["--bundle", "RECONSTREAM_BUNDLE"]),
        (["run", "--bundle"], ["--bundle", "expected one argument"]),
        (["fed"], ["no command 'fed'", "Did you mean 'feed'?"]),
        (["run", "--bundel", "b"], ["--bundel", "did you mean --bundle?"]),
        (["feed"], ["SOURCE"]),
        (["feed", "sample", "--rate", "-1"], ["--rate", "at least 0"]),
        (["feed", "sample", "--encoding", "gif"], ["--encoding", "one of png, raw"]),
        (["feed", "sample", "--count", "0"], ["--count", "at least 1"]),
        (["watch", "--count", "x"], ["--count", "a whole number"]),
        (["score", "b"], ["FILES"]),
        (["score", "b", "no-such-file.png"], ["no-such-file.png"]),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_message(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == ExitCode.BAD_CONFIGURATION
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reconstream-worker")
    for word in words:
        assert word in err


def test_a_missing_bundle_exits_3_before_anything_slow(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"")
    assert cli.main(["score", "nowhere", "image.png"]) == ExitCode.BAD_BUNDLE
    assert "no bundle at 'nowhere'" in capsys.readouterr().err


@pytest.fixture
def kafka_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Problem]], None]:
    def say(problems: list[Problem]) -> None:
        def inspect(*_: Any, **__: Any) -> list[Problem]:
            return problems

        monkeypatch.setattr(check, "inspect", inspect)

    return say


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        (["refused"], 3),
        (["unreachable"], 3),
        (["refused", "configuration"], 2),
        ([], 3),
    ],
)
def test_check_lists_every_problem_and_exits_with_the_first_kind(
    kinds: list[Any], status: int, kafka_says: Callable[[list[Problem]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    kafka_says([Problem(kind, f"a {kind} problem") for kind in kinds])
    assert cli.main(["check", "--bundle", "nowhere"]) == status
    out = capsys.readouterr().out
    assert "no bundle at 'nowhere'" in out
    for kind in kinds:
        assert f"a {kind} problem" in out


def test_check_names_unknown_variables(
    kafka_says: Callable[[list[Problem]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kafka_says([])
    monkeypatch.setenv("RECONSTREAM_OUTPUT_TOPICS", "x")
    cli.main(["check", "--bundle", "nowhere"])
    assert "did you mean RECONSTREAM_OUTPUT_TOPIC?" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_defect() -> None:
    code = (
        "import sys\nfrom worker import __main__ as cli\n"
        "def start(settings):\n"
        "    for _ in range(100_000):\n        print('a line')\n    return 0\n"
        "cli._COMMANDS['watch'] = cli._COMMANDS['watch']._replace(start=start)\n"
        "sys.exit(cli.main(['watch']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == ExitCode.UNFINISHED
        assert process.stderr.read() == b""
