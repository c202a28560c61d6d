"""Whether there is an accelerator, found without importing a backend: that takes seconds on every machine."""

from pathlib import Path

NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/dev/accel0")
NONE_HERE = f"no accelerator on this machine: none of {', '.join(NODES)} is there"


def present() -> bool:
    """Whether the system shows a device; a backend may still be unable to use it."""
    return any(Path(node).exists() for node in NODES)
