"""Apache Kafka's jars in a local cache, each verified against a committed SHA-256.

Rules: no jar is handed out whose digest is not the one in jars.sha256; a jar enters the cache in one step and
only after it was verified; of several processes one fetches and the others wait for it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

KAFKA_VERSION = "4.3.1"
COORDINATES = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")
LOCK_FILE = Path(__file__).with_name("jars.sha256")
LOCK_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[\w.+-]+\.jar)")
ATTEMPTS = 2
HTTP_TIMEOUT_S = 60
# What jgo lets through: the network's errors are OSErrors, a file that no repository has is a RuntimeError, a
# broken POM a ValueError or a SyntaxError (XML), a broken invariant an AssertionError.
FETCH_ERRORS = (OSError, RuntimeError, ValueError, SyntaxError, AssertionError)

Fetch = Callable[[Path, Collection[str] | None], None]


class JarError(RuntimeError):
    """A jar could not be fetched, or is not the one that is expected."""


def default_cache() -> Path:
    """Folder of the jars: below $XDG_CACHE_HOME, or below ~/.cache where that is unset or empty."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "reconstream" / f"kafka-{KAFKA_VERSION}"


def read_lock(path: Path = LOCK_FILE) -> dict[str, str]:
    """SHA-256 (hex) by file name, from a file in the format of sha256sum.  Raises JarError for another format."""
    expected: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), start=1):
        entry = LOCK_LINE.fullmatch(line)
        if entry is None:
            raise JarError(
                f"{path.name}:{number}: expected '<64 hex digits>  <file name>', got {line!r}; "
                "write the file anew: python -m deploy.local_kafka jars --relock"
            )
        expected[entry["name"]] = entry["digest"]
    return expected


def ensure_jars(
    cache: Path | None = None, *, expected: Mapping[str, str] | None = None, fetch: Fetch | None = None
) -> list[Path]:
    """Absolute paths of all jars, sorted by name; what is missing or damaged in the cache is fetched first.

    cache: the folder that holds them; expected: SHA-256 by file name; fetch: puts the named jars into a folder.
    Raises JarError when a jar is still missing or wrong after two attempts, or the cache cannot be written.
    """
    folder = (cache or default_cache()).absolute()
    expected = read_lock() if expected is None else expected
    paths = [folder / name for name in sorted(expected)]
    if not _wrong(folder, expected):
        return paths
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            _complete(folder, expected, fetch or fetch_with_jgo)
    except PermissionError as error:
        raise JarError(f"{folder} cannot be written ({error}): point XDG_CACHE_HOME at another folder") from error
    return paths


def relock(path: Path = LOCK_FILE, *, fetch: Fetch | None = None) -> dict[str, str]:
    """Fetch all jars anew and write their SHA-256 to path.  It trusts what it is served: review the difference."""
    with tempfile.TemporaryDirectory(prefix="reconstream-jars-") as scratch:
        into = Path(scratch)
        (fetch or fetch_with_jgo)(into, None)
        digests = {jar.name: sha256(jar) for jar in sorted(into.glob("*.jar"))}
    staged = path.with_name(path.name + ".new")
    staged.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), encoding="ascii")
    staged.replace(path)
    return digests


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex, or 'missing' where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"


def fetch_with_jgo(into: Path, names: Collection[str] | None) -> None:
    """Resolve Kafka's dependencies and put the jars of these names (None: all) into a folder.

    A local repository of its own is used, so that a damaged file in the user's is not taken again.  Mirrors are
    read from the [repositories] of jgo's own configuration file.  Raises one of FETCH_ERRORS.
    """
    from jgo.config import GlobalSettings  # noqa: PLC0415 - 300 ms that only a fetch needs
    from jgo.maven import MavenContext  # noqa: PLC0415
    from jgo.parse import Coordinate  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="maven-", dir=into) as repository:
        context = MavenContext(repo_cache=Path(repository), timeout=HTTP_TIMEOUT_S)
        context.remote_repos.update(GlobalSettings.load().repositories)
        wanted = [context.create_dependency(Coordinate(*text.split(":"), scope="compile")) for text in COORDINATES]
        inputs, transitive = context.resolver.resolve(wanted)
        artifacts = [
            dependency.artifact
            for dependency in (*inputs, *transitive)
            if dependency.artifact.packaging == "jar" and (names is None or dependency.artifact.filename in names)
        ]
        with ThreadPoolExecutor(8) as pool:
            for jar in pool.map(lambda artifact: artifact.resolve(), artifacts):
                Path(jar).replace(into / Path(jar).name)


def _wrong(folder: Path, expected: Mapping[str, str]) -> dict[str, str]:
    """What is there instead, by file name, for each jar that is not as expected."""
    found = {name: sha256(folder / name) for name in expected}
    return {name: digest for name, digest in found.items() if digest != expected[name]}


def _complete(folder: Path, expected: Mapping[str, str], fetch: Fetch) -> None:
    """Fetch what is wrong in the cache, twice at most.  The caller holds the lock."""
    for leftover in folder.glob(".fetch-*"):  # of a process that was killed: nobody else holds the lock
        shutil.rmtree(leftover)
    served: dict[str, str] = {}
    cause: BaseException | None = None
    for _ in range(ATTEMPTS):
        wrong = _wrong(folder, expected)
        if not wrong:
            return
        print(f"fetching Apache Kafka {KAFKA_VERSION} (44 MB) ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            staging = Path(scratch)
            try:
                fetch(staging, wrong.keys())
            except FETCH_ERRORS as error:
                cause = error
            served = _wrong(staging, {name: expected[name] for name in wrong})
            for name in wrong.keys() - served.keys():
                os.replace(staging / name, folder / name)
    if served:
        lines = [f"  {name}: expected {expected[name]}, got {digest}" for name, digest in sorted(served.items())]
        raise JarError(
            f"{len(served)} of {len(expected)} jars of Apache Kafka {KAFKA_VERSION} could not be had "
            f"in {ATTEMPTS} attempts{f' ({cause})' if cause else ''}:\n" + "\n".join(lines) + "\n"
            "Check the network, and the repositories in jgo's configuration: they must serve the released files."
        ) from cause


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; waits for whoever has it.  The kernel drops it when the process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
