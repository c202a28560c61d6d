"""What docker-compose.yml and the image promise, as far as it can be seen without starting them."""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest

from tests.compose.engine import Container, DockerCompose, OtherProgram
from training.settings import Fit
from training.settings import parse as parse_training
from worker.adapters.topic_rules import TopicState, judge_topics
from worker.settings import RunSettings, load, unknown_variables
from worker.tools import feed

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
# After the drain the worker still ends its threads and leaves the group.
GRACE_MARGIN_S = 10


def read(name: str) -> dict[str, Any]:
    """A compose file as it is without any variable set."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / name).read_text("utf-8"))
    found = msgspec.yaml.decode(text, type=dict[str, Any])
    return {key: value for key, value in found.items() if not key.startswith("x-")}


COMPOSE = read("docker-compose.yml")
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
ONE_SHOT = ["topics", "train"]


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


def shell(service: str) -> str:
    """The script of a service whose command is a shell's; in a compose file $$ stands for $."""
    return str(SERVICES[service]["command"][-1]).replace("$$", "$")


def run_script(script: str, environment: Mapping[str, object]) -> str:
    done = subprocess.run(
        ["bash", "-euc", script],
        env={"PATH": os.environ["PATH"], **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return done.stdout


def recorder(folder: Path, name: str) -> Path:
    """A program that prints its arguments as JSON."""
    program = folder / name
    program.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    return program


# ---- the services ----


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined_bounded_and_pinned(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    tag = service["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+\.\d+|cpu", tag), service["image"]
    # Kafka's image writes its configuration at the start.
    assert service.get("read_only", False) is (name != "kafka")
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")


def test_ports_are_open_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports), ports


def test_the_worker_can_be_scaled() -> None:
    assert not {"ports", "container_name", "hostname"} & SERVICES["worker"].keys()


def test_each_start_waits_for_what_it_needs_to_be_healthy_or_done() -> None:
    for name, service in SERVICES.items():
        for needed, rule in service.get("depends_on", {}).items():
            one_shot = needed in ONE_SHOT
            expected = "service_completed_successfully" if one_shot else "service_healthy"
            assert rule["condition"] == expected, f"{name} waits for {needed}"
            if not one_shot:
                assert SERVICES[needed]["healthcheck"]["test"]
    assert SERVICES["worker"]["depends_on"].keys() == {"kafka", "topics", "train"}


def test_one_image_is_built() -> None:
    builds = [(SERVICES[name]["build"], SERVICES[name]["image"]) for name in OURS]
    assert builds == builds[:1] * 3


def test_the_gpu_file_overrides_services_that_there_are() -> None:
    override = read("docker-compose.gpu.yml")["services"]
    assert override.keys() == set(OURS)
    assert {service["image"] for service in override.values()} == {"reconstream:gpu"}
    for name in ("train", "worker"):
        device = override[name]["deploy"]["resources"]["reservations"]["devices"][0]
        assert device["capabilities"] == ["gpu"]


# ---- what they are told ----


@pytest.fixture
def worker_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunSettings:
    monkeypatch.chdir(tmp_path)
    for name, value in SERVICES["worker"]["environment"].items():
        monkeypatch.setenv(name, str(value))
    assert unknown_variables([RunSettings]) == []
    return load(RunSettings, SERVICES["worker"]["command"][2:], "worker")


def test_the_worker_has_time_to_drain(worker_settings: RunSettings) -> None:
    assert seconds(SERVICES["worker"]["stop_grace_period"]) >= worker_settings.drain_timeout_s + GRACE_MARGIN_S


def test_the_topics_suit_the_worker(worker_settings: RunSettings, tmp_path: Path) -> None:
    tool = recorder(tmp_path, "kafka-topics")
    service = SERVICES["topics"]
    script = shell("topics").replace("/opt/kafka/bin/kafka-topics.sh", str(tool))
    states = []
    for line in run_script(script, service["environment"]).splitlines():
        words = json.loads(line)
        given = dict(pairwise(words))
        assert given["--bootstrap-server"] == worker_settings.kafka.bootstrap_servers
        assert "--if-not-exists" in words
        name, _, limit = given["--config"].partition("=")
        assert name == "max.message.bytes"
        states.append(TopicState(given["--topic"], int(given["--partitions"]), int(limit), None))
    assert tuple(state.name for state in states) == worker_settings.topics
    source, output, _ = states
    assert judge_topics(states, worker_settings.max_message_bytes) == []
    # The same limit, not just enough: a larger one would promise what the topic refuses.
    assert source.max_message_bytes == output.max_message_bytes == worker_settings.max_message_bytes


def test_the_model_is_trained_where_there_is_none_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder(tmp_path, "reconstream-train")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    environment = SERVICES["train"]["environment"] | {"RECONSTREAM_TRAIN_OUTPUT": tmp_path / "bundles"}
    arguments = json.loads(run_script(shell("train"), environment))
    assert isinstance(parse_training(arguments), Fit)
    bundle = tmp_path / "bundles" / "mnist-1-abc"
    bundle.mkdir(parents=True)
    (bundle / "manifest.json").touch()
    (tmp_path / "bundles" / "current").symlink_to(bundle.name)
    assert run_script(shell("train"), environment) == "a model is there: mnist-1-abc\n"


def test_train_writes_what_the_worker_reads(worker_settings: RunSettings) -> None:
    output = Path(SERVICES["train"]["environment"]["RECONSTREAM_TRAIN_OUTPUT"])
    assert worker_settings.bundle == output / "current"
    assert SERVICES["train"]["volumes"] == [f"bundles:{output}"]
    assert SERVICES["worker"]["volumes"] == [f"bundles:{output}:ro"]


def test_the_feeder_sends_the_sample_to_the_workers_topic(
    worker_settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, command, *arguments = SERVICES["feed"]["command"]
    assert (program, command) == ("reconstream-worker", "feed")
    for name, value in SERVICES["feed"]["environment"].items():
        monkeypatch.setenv(name, str(value))
    settings = load(feed.Settings, arguments, "feed")
    assert (settings.source, settings.loop) == ("sample", True)
    assert settings.input_topic == worker_settings.input_topic
    assert settings.kafka == worker_settings.kafka


# ---- the image ----


def pins(path: Path) -> dict[str, set[str]]:
    """By package, its locked versions, markers included."""
    found: dict[str, set[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        if pin := re.match(r"([a-z0-9-]+)==([^\\]+)", line):
            found.setdefault(pin[1], set()).add(pin[2].strip())
    return found


def test_the_gpu_image_has_the_cpu_images_versions() -> None:
    cpu, gpu = pins(ROOT / "requirements.txt"), pins(DOCKER / "requirements-gpu.txt")
    only_gpu = {name for name in gpu.keys() - cpu.keys() if not name.startswith("nvidia-")}
    assert only_gpu == set()
    assert cpu.keys() - gpu.keys() == {"tensorflow-cpu"}
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == {"tensorflow"}
    (cpu_tensorflow,) = cpu["tensorflow-cpu"]
    assert gpu["tensorflow"] == {cpu_tensorflow.split()[0]}


def test_the_image_is_built_with_what_the_project_is_built_with() -> None:
    build, dev = pins(DOCKER / "requirements-build.txt"), pins(ROOT / "requirements-dev.txt")
    assert "hatchling" in build
    assert {name for name in build.keys() & dev.keys() if build[name] != dev[name]} == set()


def test_the_images_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    dockerfile = (DOCKER / "Dockerfile").read_text("utf-8")
    assert f'org.opencontainers.image.version="{project["version"]}"' in dockerfile


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_the_health_check_says_whether_the_worker_is_ready(status: int, expected: int) -> None:
    asked = []

    class Worker(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'["the model"]')

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with HTTPServer(("127.0.0.1", 0), Worker) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        done = health_check(server.server_port, "-c", PATIENT, str(DOCKER))
        thread.join()
    assert done.returncode == expected
    assert asked == ["/readyz"]
    assert '["the model"]' in done.stdout


def test_the_health_check_fails_where_nothing_answers() -> None:
    with socket.socket() as held:
        # Bound and not listening: it refuses, and nobody else can take the port.
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        done = health_check(port)
    assert done.returncode == 1
    assert f"no answer on port {port}" in done.stdout


# Its own time limit is for a worker that answers late; here the machine may be busy.
PATIENT = "import sys; sys.path.insert(0, sys.argv[1]); import healthcheck as h; h.TIMEOUT_S = 60; sys.exit(h.main())"


def health_check(port: int, *program: str) -> "subprocess.CompletedProcess[str]":
    # A proxy that is not there: asking it would fail.
    environment = {"RECONSTREAM_HTTP_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-IBS", *(program or (str(DOCKER / "healthcheck.py"),))]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


# ---- the check's reading of what compose programs say ----


def fake(folder: Path, output: str) -> Path:
    """A compose program that appends its arguments to the file `said`, and prints `output`."""
    program = folder / "compose"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/said\ncat <<END\n{output}\nEND\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("form", ["lines", "list"])
def test_dockers_exit_codes_are_read_between_stop_and_down(tmp_path: Path, form: str) -> None:
    rows = [
        {"Service": "worker", "State": "running", "Health": "healthy", "ExitCode": 0},
        {"Service": "topics", "State": "exited", "Health": "", "ExitCode": 3},
    ]
    program = fake(tmp_path, json.dumps(rows) if form == "list" else "\n".join(map(json.dumps, rows)))
    compose = DockerCompose([str(program)], "p", {})
    assert compose.containers()[1] == Container("topics", "exited", "", 3)
    assert compose.down(volumes=True) == {"worker": [0]}
    said = (tmp_path / "said").read_text().splitlines()[1:]
    listed = "-p p ps --all --format json"
    assert said == [listed, "-p p stop", listed, "-p p down --volumes"]


def test_another_programs_table_and_exit_codes_are_read(tmp_path: Path) -> None:
    table = "worker   running     healthy   \nfeed     running               \ntopics   exited (0)            "
    other = OtherProgram([str(fake(tmp_path, table))], "p", {})
    assert other.containers() == [
        Container("worker", "running", "healthy", None),
        Container("feed", "running", "", None),
        Container("topics", "exited", "", 0),
    ]
    stopped = (
        "stopped worker in 2.1 s, exit code 0\n"
        "stopped worker in 0.1 s, exit code 137\n"
        "stopped kafka in 1 s, exit code 143"
    )
    other = OtherProgram([str(fake(tmp_path, stopped))], "p", {})
    assert other.down(volumes=False) == {"worker": [0, 137], "kafka": [143]}
