from pathlib import Path

import pytest

from worker.adapters.memory_limit import memory_limit_bytes

NO_LIMIT_V1 = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "536870912\n"}, 536870912),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "300\n", "memory.max": "max\n"}, 300),
        ("0::/a/b\n", {"a/b/memory.max": "100\n", "a/memory.max": "300\n"}, 100),
        ("0::/not/mounted/here\n", {"memory.max": "700\n"}, 700),
        ("5:cpu,memory:/docker/x\n1:cpu:/\n", {"memory/memory.limit_in_bytes": "900\n"}, 900),
        ("5:memory:/x\n", {"memory/memory.limit_in_bytes": NO_LIMIT_V1}, None),
        ("5:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": "800\n"}, 800),
        ("0::/\n", {"memory.max": "what?\n"}, None),
    ],
)
def test_the_smallest_limit_on_the_way_up_counts(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert memory_limit_bytes(tmp_path) == limit


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert memory_limit_bytes(tmp_path) is None


def test_it_can_be_asked_here() -> None:
    limit = memory_limit_bytes()
    assert limit is None or limit > 1 << 20
