"""Looks for everything that would keep the worker from running, and lists it; changes nothing."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from worker.adapters.kafka_admin import inspect
from worker.adapters.topic_rules import Problem, error_of, in_order
from worker.core.bundle import read_bundle
from worker.core.errors import BundleError, ExitCode
from worker.settings import RunSettings

MARKS = {"configuration": "setting", "bundle": "bundle", "unreachable": "Kafka", "refused": "Kafka"}


class Settings(RunSettings):
    r"""Check settings, bundle, broker and topics; list every problem, change nothing.

    Takes the settings of 'run', and exits as it would.

    Example:
      reconstream-worker check --bundle models/current --kafka.bootstrap-servers kafka-1:9092
    """


def check(settings: RunSettings) -> list[Problem]:
    """Everything that would keep `run` from running, in the order in which it decides the exit status."""
    problems = []
    try:
        bundle = read_bundle(settings.bundle)
    except BundleError as error:
        problems.append(Problem("bundle", str(error)))
    else:
        height, width, channels = bundle.manifest.input_shape
        if height * width > settings.max_image_pixels:
            message = (
                f"--max-image-pixels is {settings.max_image_pixels}, the bundle's images have {height * width}; "
                "expected at least as many."
            )
            problems.append(Problem("configuration", message))
        if (size := height * width * channels) > settings.max_message_bytes:
            message = (
                f"--max-message-bytes is {settings.max_message_bytes}, a raw image of the bundle has {size} bytes; "
                "expected at least as many."
            )
            problems.append(Problem("configuration", message))
    problems += inspect(
        settings.kafka.client_options(),
        settings.topics,
        max_message_bytes=settings.max_message_bytes,
        timeout_s=settings.start_timeout_s,
    )
    return in_order([problem for problem in problems if not (problem.creatable and settings.create_topics)])


def main(settings: Settings, unknown: Sequence[str] = ()) -> int:
    """List every problem on stdout, and variables that nothing reads; 0 if there is no problem."""
    problems = check(settings)
    console = Console(soft_wrap=True, highlight=False)
    for line in unknown:
        console.print(Text.assemble(("note     ", "yellow"), line))
    for problem in problems:
        console.print(Text.assemble((f"{MARKS[problem.kind]:<9}", "red"), problem.message))
    if problems:
        return int(error_of(problems).exit_code)
    console.print(
        Text.assemble(
            ("ok       ", "green"), f"bundle {settings.bundle}, {settings.kafka.bootstrap_servers}, topics "
        )
        + Text(", ".join(settings.topics))
    )
    return int(ExitCode.STOPPED)
