"""Hot reload: a new bundle behind the configured path takes over while the worker goes on judging.

    look ──▶ verify ──▶ load, score the golden images, warm up ──▶ swapped between two batches
      │        └─────────────────┴─▶ refused: the bundle in use goes on
      └── every `interval_s`, and at once when asked (SIGHUP)

Rules: all of it happens on a thread of its own, beside the model in use, up to the swap itself, which is the scoring
thread's; a loader that hangs therefore stops nothing but later reloads, and is logged. A bundle is new when its real
folder or its manifest's digest is another than that in use. A refused bundle is tried again only when one of its
files has changed, or when somebody asks; it is logged once for each cause and counted each time. While two bundles
are loaded, both need their memory; the one before is released right after the swap.
"""

import gc
import logging
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import msgspec

from worker.answering import Model
from worker.core.bundle import FILES, MANIFEST, MAX_MANIFEST_BYTES, Bundle, read_bundle, resolve
from worker.core.errors import BundleError, ReconstreamError
from worker.ports import Telemetry

log = logging.getLogger(__name__)

# How long stop() waits for a step in work. A thread in the middle of a native call must not outlive the interpreter
# without need, nor may a hung one keep a stopped process alive.
STOP_TIMEOUT_S = 5.0
# How often a wait for the scoring thread looks whether to stop.
STOP_CHECK_S = 0.25


class Sighting(NamedTuple):
    """What stands behind the bundle's path, as far as one can see without reading it all.

    Attributes:
        folder: the real folder; the path itself where it leads nowhere.
        digest: the one that the manifest states; empty where there is none to be read.
        files: inode, size and time of last change (ns) of each file, None for one that is missing. The time is that
            of the inode (ctime): it tells a repair of permissions, or of the content with its old date, too.
    """

    folder: Path
    digest: str
    files: tuple[tuple[int, int, int] | None, ...]

    @property
    def identity(self) -> tuple[Path, str]:
        """What makes it another bundle than the one in use."""
        return self.folder, self.digest


class Reloader:
    """Watches the bundle's path and has new bundles swapped in.

    Args:
        path: as configured: a bundle's folder, a link to it, or the folder above with its `current` link.
        bundle: the one in use.
        interval_s: time between two looks; 0 = only when asked.
        load: makes a verified bundle ready to score, golden images and warm-up included; may raise anything.
        replace: ScoringThread.replace.
        announce: tells the world which bundle judges from now on; called by the scoring thread at the swap, so it
            returns quickly and never raises.
        telemetry: counts what was swapped and what was refused.
        late_after_s: a load that takes longer is logged as an error: it may hang.
    """

    def __init__(
        self,
        path: Path,
        bundle: Bundle,
        *,
        interval_s: float,
        load: Callable[[Bundle], Model],
        replace: Callable[[Model, Callable[[], None]], None],
        announce: Callable[[Bundle], None],
        telemetry: Telemetry,
        late_after_s: float,
    ) -> None:
        self._path = path
        self._in_use = bundle
        self._interval_s = interval_s
        self._load = load
        self._replace = replace
        self._announce = announce
        self._telemetry = telemetry
        self._late_after_s = late_after_s
        self._refused: Sighting | None = None
        self._reported: tuple[tuple[Path, str], str] | None = None
        # Its put() may interrupt itself, which a signal handler's call can; Event.set() would wait for itself.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request(self) -> None:
        """Look at once, and try again what was refused. Safe in a signal handler."""
        self._wake.put(None)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """End after the step in work, and wait up to `timeout_s` seconds for it: whether the thread has ended."""
        self._stopping.set()
        self._wake.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            asked = self._wait()
            if self._stopping.is_set():
                return
            try:
                self.look(asked=asked)
            except Exception:
                # A defect; but the next look may succeed, and a thread that is gone would never take a bundle again.
                log.exception("the look for a new bundle failed")

    def _wait(self) -> bool:
        """Wait for the next look; whether somebody asked for it."""
        try:
            self._wake.get(timeout=self._interval_s or None)
        except Empty:
            return False
        while not self._wake.empty():  # many requests before one look are one
            self._wake.get_nowait()
        return True

    def look(self, *, asked: bool) -> None:
        """One look at the path, with all that follows from it; called by the thread of this object."""
        seen = sight(self._path)
        if seen.identity == (self._in_use.folder, self._in_use.manifest.digest):
            self._refused = self._reported = None
            if asked:
                log.info("asked to reload: '%s' is in use already", seen.folder.name)
            return
        if seen == self._refused and not asked:
            return
        self._try(seen, asked=asked)
        # Models are full of cycles: the one before, or the refused one, would keep its memory until the collector
        # happens to come by.
        gc.collect()

    def _try(self, seen: Sighting, *, asked: bool) -> None:
        log.info("loading the bundle '%s' beside '%s'", seen.folder, self._in_use.folder.name)
        late = threading.Timer(self._late_after_s, self._report_late, (seen,))
        late.daemon = True
        late.start()
        try:
            bundle = read_bundle(seen.folder)
            model = self._load(bundle)
        except Exception as error:  # noqa: BLE001 - a backend raises whatever a model leads to; the one in use goes on
            self._refuse(seen, error, asked=asked)
            return
        finally:
            late.cancel()
        self._swap(bundle, model)

    def _report_late(self, seen: Sighting) -> None:
        log.error(
            "the bundle '%s' is not loaded after %.0f s, '%s' goes on judging; no other bundle is taken before: if "
            "it stays so, switch 'current' back and restart this worker",
            seen.folder,
            self._late_after_s,
            self._in_use.folder.name,
        )

    def _refuse(self, seen: Sighting, error: Exception, *, asked: bool) -> None:
        self._telemetry.reloaded("refused")
        foreseen = isinstance(error, ReconstreamError)
        message = str(error) if foreseen else f"{type(error).__name__}: {error}"
        report = (seen.identity, message)
        if asked or report != self._reported:
            log.error(
                "the bundle behind '%s' is refused, '%s' goes on judging: %s",
                self._path,
                self._in_use.folder.name,
                message,
                exc_info=None if foreseen else error,
            )
        self._refused, self._reported = seen, report

    def _swap(self, bundle: Bundle, model: Model) -> None:
        done = threading.Event()

        def swapped() -> None:
            self._announce(bundle)
            done.set()

        self._replace(model, swapped)
        while not done.wait(STOP_CHECK_S):
            if self._stopping.is_set():
                return
        before, self._in_use = self._in_use, bundle
        self._refused = self._reported = None
        self._telemetry.reloaded("swapped")
        log.info(
            "swapped: '%s' judges from now on, threshold %s; before it '%s', threshold %s",
            bundle.folder.name,
            bundle.threshold,
            before.folder.name,
            before.threshold,
        )
        old, new = before.manifest.input_shape, bundle.manifest.input_shape
        if old != new:
            log.warning(
                "'%s' takes images of %s, '%s' took %s: raw images of the old size are unreadable from now on, and "
                "others too where the bundle does not resize; switch the senders",
                bundle.folder.name,
                "x".join(map(str, new)),
                before.folder.name,
                "x".join(map(str, old)),
            )


def sight(path: Path) -> Sighting:
    """See what stands behind `path`; never raises for what is or is not there."""
    try:
        folder = resolve(path)
    except BundleError:
        return Sighting(path, "", ())
    return Sighting(
        folder, _stated_digest(folder / MANIFEST), tuple(_state(folder / name) for name in (MANIFEST, *FILES))
    )


class _Stated(msgspec.Struct):
    digest: str


def _stated_digest(manifest: Path) -> str:
    try:
        # A pipe would never end.
        if not stat.S_ISREG(manifest.lstat().st_mode):
            return ""
        with manifest.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_MANIFEST_BYTES + 1), type=_Stated).digest
    except (OSError, ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        return ""


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_ctime_ns
