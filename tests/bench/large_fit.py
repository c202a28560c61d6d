"""How long a fit to many large images takes, and how much memory: surfaces as PNG files, fitted as users do.

    python -m tests.bench.large_fit [--images 20000] [--side 256] [--minutes 60]

Writes build/large-fit.json; exits with 1 where the command took longer than it was given, or more than 4 GiB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from training.surfaces import TEXTURES, surfaces
from worker.core.images import encode_png

OUTPUT = Path("build/large-fit.json")
MEMORY_LIMIT_MIB = 4096
CHUNK = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--minutes", type=float, default=60.0, help="the time budget")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as root:
        photos, bundles = Path(root, "photos"), Path(root, "bundles")
        write(photos, asked.images, asked.side)
        command = [sys.executable, "-m", "training", "fit", "--data", str(photos), "--output", str(bundles)]
        began = time.monotonic()
        code = subprocess.run([*command, "--time-budget", str(asked.minutes)], check=False).returncode
        minutes = (time.monotonic() - began) / 60
        memory_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        training = {}
        if code == 0:
            training = json.loads((bundles / "current" / "manifest.json").read_bytes())["training"]
    result = {
        "images": asked.images,
        "side": asked.side,
        "cores": os.cpu_count(),
        "exit_code": code,
        "minutes": round(minutes, 1),
        "peak_rss_mib": round(memory_mib),
        **{
            key: training.get(key)
            for key in ("machine", "epochs", "ended_by", "epoch_kept", "validation_loss_history")
        },
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return int(code != 0 or minutes > asked.minutes or memory_mib > MEMORY_LIMIT_MIB)


def write(folder: Path, count: int, side: int) -> None:
    """Surfaces of every texture in turn, as PNG files."""
    folder.mkdir()
    names = list(TEXTURES)
    for chunk, first in enumerate(track(range(0, count, CHUNK), description="surfaces")):
        made = surfaces(names[chunk % len(names)], min(CHUNK, count - first), side=side, seed=chunk)
        for index, image in enumerate(made, first):
            (folder / f"{index:06}.png").write_bytes(encode_png(image))


if __name__ == "__main__":
    sys.exit(main())
