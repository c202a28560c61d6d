"""The cache of Kafka's jars hands out verified files only, and fetches once; no network here."""

import hashlib
import threading
from collections.abc import Collection
from pathlib import Path

import pytest

from deploy.local_kafka import jars
from deploy.local_kafka.jars import JarError, ensure_jars, read_lock, relock

GOOD = {"a-1.jar": b"first", "b-2.jar": b"second"}
EXPECTED = {name: hashlib.sha256(content).hexdigest() for name, content in GOOD.items()}


class FakeRepository:
    """Serves the files it was given, and remembers what it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[set[str]] = []

    def __call__(self, into: Path, names: Collection[str] | None) -> None:
        wanted = set(self.files if names is None else names)
        self.asked.append(wanted)
        for name in wanted & self.files.keys():
            (into / name).write_bytes(self.files[name])


def test_an_empty_cache_is_filled_and_then_used_without_a_fetch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = FakeRepository(GOOD)
    cache = tmp_path / "not" / "there" / "yet"
    paths = ensure_jars(cache, expected=EXPECTED, fetch=repository)
    assert [(path.name, path.read_bytes()) for path in paths] == sorted(GOOD.items())
    assert all(path.is_absolute() for path in paths)
    assert "fetching Apache Kafka 4.3.1 (44 MB) ..." in capsys.readouterr().err

    assert ensure_jars(cache, expected=EXPECTED, fetch=repository) == paths
    assert len(repository.asked) == 1
    assert capsys.readouterr().err == ""


def test_a_tampered_jar_is_replaced_and_the_others_are_left_alone(tmp_path: Path) -> None:
    repository = FakeRepository(GOOD)
    ensure_jars(tmp_path, expected=EXPECTED, fetch=repository)
    (tmp_path / "b-2.jar").write_bytes(b"sec0nd")
    ensure_jars(tmp_path, expected=EXPECTED, fetch=repository)
    assert (tmp_path / "b-2.jar").read_bytes() == b"second"
    assert repository.asked[1:] == [{"b-2.jar"}]


def test_a_jar_served_wrong_is_fetched_once_more_and_never_enters_the_cache(tmp_path: Path) -> None:
    repository = FakeRepository(GOOD | {"b-2.jar": b"evil"})
    with pytest.raises(JarError) as caught:
        ensure_jars(tmp_path, expected=EXPECTED, fetch=repository)
    message = str(caught.value)
    assert "b-2.jar" in message
    assert "a-1.jar" not in message
    assert EXPECTED["b-2.jar"] in message
    assert hashlib.sha256(b"evil").hexdigest() in message
    assert repository.asked == [{"a-1.jar", "b-2.jar"}, {"b-2.jar"}]
    assert [path.name for path in tmp_path.glob("*.jar")] == ["a-1.jar"]


def test_a_jar_that_the_second_attempt_serves_right_is_taken(tmp_path: Path) -> None:
    first, second = FakeRepository({"a-1.jar": b"first"}), FakeRepository(GOOD)
    attempts = iter([first, second])

    def flaky(into: Path, names: Collection[str] | None) -> None:
        next(attempts)(into, names)

    paths = ensure_jars(tmp_path, expected=EXPECTED, fetch=flaky)
    assert [path.read_bytes() for path in paths] == [b"first", b"second"]
    assert second.asked == [{"b-2.jar"}]


def test_a_fetch_that_fails_is_named_as_the_cause(tmp_path: Path) -> None:
    def unreachable(into: Path, names: Collection[str] | None) -> None:
        raise ConnectionError("no route to host")

    with pytest.raises(JarError, match=r"2 of 2 jars .* in 2 attempts \(no route to host\)"):
        ensure_jars(tmp_path, expected=EXPECTED, fetch=unreachable)


def test_of_two_that_find_the_cache_empty_one_fetches(tmp_path: Path) -> None:
    repository = FakeRepository(GOOD)
    fetching, go_on = threading.Event(), threading.Event()

    def slow(into: Path, names: Collection[str] | None) -> None:
        fetching.set()
        assert go_on.wait(30)
        repository(into, names)

    results: list[list[Path]] = []
    workers = [
        threading.Thread(target=lambda: results.append(ensure_jars(tmp_path, expected=EXPECTED, fetch=slow)))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    assert fetching.wait(30)
    go_on.set()
    for worker in workers:
        worker.join(30)
    assert len(results) == 2
    assert results[0] == results[1]
    assert len(repository.asked) == 1


def test_what_a_killed_fetch_left_is_cleared_away(tmp_path: Path) -> None:
    leftover = tmp_path / ".fetch-killed"
    leftover.mkdir()
    (leftover / "a-1.jar").write_bytes(b"fir")
    ensure_jars(tmp_path, expected=EXPECTED, fetch=FakeRepository(GOOD))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a-1.jar", "b-2.jar"]


def test_the_lock_file_names_the_jars_of_the_version_that_is_announced() -> None:
    expected = read_lock()
    assert len(expected) == 46
    assert f"kafka-server-{jars.KAFKA_VERSION}.jar" in expected


@pytest.mark.parametrize("line", ["abc  a.jar", "0" * 64 + " a.jar", "0" * 64 + "  ../a.jar", "g" * 64 + "  a.jar"])
def test_a_damaged_lock_file_is_refused(tmp_path: Path, line: str) -> None:
    lock = tmp_path / "jars.sha256"
    lock.write_text(f"{'1' * 64}  fine.jar\n{line}\n")
    with pytest.raises(JarError, match=r"jars\.sha256:2: expected .*--relock"):
        read_lock(lock)


def test_relock_writes_what_read_lock_reads(tmp_path: Path) -> None:
    lock = tmp_path / "jars.sha256"
    relock(lock, fetch=FakeRepository(GOOD))
    assert read_lock(lock) == EXPECTED


@pytest.mark.parametrize("base", [None, ""])
def test_the_default_cache_is_below_home_where_xdg_names_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if base is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", base)
    assert jars.default_cache() == tmp_path / ".cache" / "reconstream" / "kafka-4.3.1"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert jars.default_cache() == tmp_path / "xdg" / "reconstream" / "kafka-4.3.1"
