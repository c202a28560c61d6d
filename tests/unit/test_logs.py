import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from worker import logs

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging as it was: it belongs to the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs.OURS}
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, ours in levels.items():
        logging.getLogger(name).setLevel(ours)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == "", "stdout is for results"
    return [json.loads(line) for line in err.splitlines()]


def test_without_a_terminal_lines_are_json_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auto", "info")
    structlog.get_logger("worker.app").info("started", partitions=3)
    (line,) = lines(capsys)
    assert line["event"] == "started"
    assert line["partitions"] == 3
    assert line["level"] == "info"
    assert line["logger"] == "worker.app"
    written = datetime.fromisoformat(line["timestamp"])
    assert written.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)


def test_on_a_terminal_lines_are_readable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure("auto", "info")
    structlog.get_logger("worker").info("started")
    err = capsys.readouterr().err
    assert "started" in err
    assert not err.startswith("{")


def test_json_on_a_terminal_if_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure("json", "info")
    structlog.get_logger("worker").info("started")
    assert lines(capsys)[0]["event"] == "started"


def test_the_level_is_ours_and_others_begin_at_warning(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "debug")
    structlog.get_logger("worker.pipeline").debug("ours")
    logging.getLogger("kafka.client").debug("configuration with password %s", PASSWORD)
    logging.getLogger("kafka.client").info("chatter")
    logging.getLogger("kafka.client").warning("broker %s is gone", 1)
    assert [(line["logger"], line["event"]) for line in lines(capsys)] == [
        ("worker.pipeline", "ours"),
        ("kafka.client", "broker 1 is gone"),
    ]
    logs.configure("json", "error")
    structlog.get_logger("worker").warning("not important enough")
    assert lines(capsys) == []


def test_configuring_twice_does_not_write_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logs.configure("json")
    structlog.get_logger("worker").info("once")
    assert len(lines(capsys)) == 1


def test_python_warnings_are_lines_too() -> None:
    # In a process of its own: pytest has its own way with warnings.
    code = "import warnings\nfrom worker import logs\nlogs.configure('json')\nwarnings.warn('old-fashioned')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "warning"
    assert "old-fashioned" in line["event"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_masked_at_any_depth(log_format: logs.LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(log_format)
    structlog.get_logger("worker").info(
        "settings",
        kafka={"sasl_password": PASSWORD, "ssl_key_password": None, "nested": [{"Client-Secret": PASSWORD}]},
        anything=SecretStr(PASSWORD),
        several=[SecretStr(PASSWORD)],
        sasl_plain_password=PASSWORD,
        user="app",
    )
    logging.getLogger("kafka").error("failed", extra={"sasl_password": PASSWORD})
    err = capsys.readouterr().err
    assert PASSWORD not in err
    assert "app" in err
    assert err.count(logs.MASK) == 5


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(log_format: logs.LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(log_format)
    try:
        local = PASSWORD
        raise ValueError(f"a secret of {len(local)} characters")
    except ValueError:
        structlog.get_logger("worker").exception("a defect")
    err = capsys.readouterr().err
    assert "ValueError: a secret of 7 characters" in err
    assert "test_a_traceback_shows_no_local_variables" in err
    assert PASSWORD not in err
    if log_format == "json":
        assert len(err.splitlines()) == 1
