"""Command line of the local Kafka: run a broker in the foreground, or look after Kafka's jars."""

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from deploy.local_kafka.cluster import KafkaCluster
from deploy.local_kafka.jars import KAFKA_VERSION, LOCK_FILE, JarError, ensure_jars, relock
from deploy.local_kafka.node import ClusterError

EXAMPLES = """\
examples:
  python -m deploy.local_kafka run --topic images:4 --topic verdicts:4
      one broker in a temporary folder; its address is printed, Ctrl-C stops it and forgets everything
  python -m deploy.local_kafka run --nodes 3 --root build/kafka
      three brokers whose data and ports are kept in build/kafka for the next run
  python -m deploy.local_kafka jars
      fetch Kafka's jars now (44 MB, once) instead of on the first run
"""


def topic(text: str) -> tuple[str, int]:
    """'images:4' as (name, partitions); without a number one partition."""
    name, _, partitions = text.partition(":")
    if not name or not (partitions or "1").isdigit() or int(partitions or 1) < 1:
        raise argparse.ArgumentTypeError(f"expected NAME or NAME:PARTITIONS, as in images:4, got {text!r}")
    return name, int(partitions or 1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m deploy.local_kafka",
        description=f"A real Apache Kafka {KAFKA_VERSION} here, without Docker and without Java installed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a broker in the foreground until Ctrl-C")
    run.add_argument("--nodes", type=int, choices=(1, 3), default=1, help="how many brokers (default: 1)")
    run.add_argument("--root", type=Path, help="folder to keep data, ports and logs in (default: a temporary one)")
    run.add_argument(
        "--topic",
        type=topic,
        action="append",
        default=[],
        metavar="NAME[:PARTITIONS]",
        help="create this topic unless it exists; may be given several times",
    )
    jars = commands.add_parser("jars", help="fetch and verify Kafka's jars, and print where they are")
    jars.add_argument(
        "--relock",
        action="store_true",
        help=f"fetch all anew and write their SHA-256 to {LOCK_FILE.name}; review it before you commit",
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 when stopped on request, 1 when something failed."""
    options = parser().parse_args(arguments)
    # A service manager's stop request ends the program as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.command == "run":
            run_cluster(options.root, options.nodes, dict(options.topic))
        elif options.relock:
            print(f"{len(relock())} jars in {LOCK_FILE}")
        else:
            print(*ensure_jars(), sep="\n")
    except KeyboardInterrupt:
        return 0
    except (ClusterError, JarError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run_cluster(root: Path | None, nodes: int, topics: dict[str, int]) -> None:
    """Run until interrupted.  Only the bootstrap address goes to standard output.

    Raises KeyboardInterrupt on Ctrl-C and SIGTERM, after a controlled shutdown; ClusterError when a broker died.
    """
    with ExitStack() as stack:
        folder = root or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reconstream-kafka-")))
        cluster = stack.enter_context(KafkaCluster(folder, nodes))
        present = cluster.list_topics()
        missing: dict[str, tuple[int, dict[str, object]]] = {
            name: (partitions, {}) for name, partitions in topics.items() if name not in present
        }
        if missing:
            cluster.create_topics(missing)
        print(f"Apache Kafka {KAFKA_VERSION} runs, its files are in {folder}; Ctrl-C stops it", file=sys.stderr)
        print(cluster.bootstrap, flush=True)
        try:
            never = threading.Event()
            while not never.wait(0.5):
                cluster.check()
        except KeyboardInterrupt:
            cluster.stop(timeout=10)
            raise


if __name__ == "__main__":
    sys.exit(main())
