"""The memory limit that the kernel holds this process to, from the control groups of Linux."""

from pathlib import Path, PurePosixPath

# Version 1 says "no limit" by the largest number of pages.
UNLIMITED = 1 << 60


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The smallest limit of this process's control group and those above it; None where none is set.

    Both versions of control groups are known (https://docs.kernel.org/admin-guide/cgroup-v2.html, cgroups(7)). In a
    container the group's path may be that of the host, of which only the root is mounted: hence the way upwards.

    Args:
        root: where /proc and /sys are looked for.
    """
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounted, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mounted, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        limits += [_text(mounted / above / name).strip() for above in (group, *group.parents)]
    return min((int(limit) for limit in limits if limit.isdecimal() and int(limit) < UNLIMITED), default=None)


def _text(file: Path) -> str:
    try:
        return file.read_text("ascii", errors="replace")
    except OSError:
        return ""
