"""A worker that localises: what its verdicts and maps say is what its model makes of the images.

The contract suite has maps in both deliveries and with both clients.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Broker
from tests.integration.test_worker_process import Lane
from tests.support.bundles import SHAPE, tiny_images
from tests.support.kafka import committed, produce, read_all
from tests.support.processes import WorkerProcess
from worker.adapters.keras_scorer import KerasScorer
from worker.core.bundle import Bundle
from worker.core.errors import ExitCode
from worker.core.images import ImageSpec, decode
from worker.core.records import OutRecord, header, source_of
from worker.core.regions import error_maps, region_of

COUNT = 24


def test_the_maps_of_a_running_worker_are_its_model_s(
    kafka: Broker, topics: Callable[..., str], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    lane = Lane(kafka, topics, tiny_bundle)
    maps = f"{lane.input}-maps"
    images = tiny_images(COUNT, seed=COUNT)
    # An untrained model makes grey of everything: the strongest contrast is the largest error.
    images[::3, :, :4], images[::3, :, 4:] = 0, 255
    produce(lane.options, [OutRecord(lane.input, i % 3, b"%d" % i, images[i].tobytes(), []) for i in range(COUNT)])
    more = {"delivery": "exactly_once", "localisation": "maps", "map_topic": maps, "create_topics": True}
    with WorkerProcess(tmp_path / "worker.log", {**lane.settings, **more}) as worker:
        verdicts = read_all(lane.options, lane.output, COUNT)
        assert worker.terminate() == ExitCode.STOPPED, worker.text
    assert f"its error map goes to '{maps}'" in worker.text
    assert sum(committed(lane.options, lane.group, lane.input).values()) == COUNT
    found = {(record.partition, record.key): record for record in read_all(lane.options, maps)}
    anomalies = [record for record in verdicts if json.loads(record.value or b"")["anomaly"]]
    assert len(anomalies) >= COUNT // 3
    assert sorted(found) == sorted((record.partition, record.key or b"") for record in anomalies)
    # What was committed is there for good: the worker is gone.
    reconstructions = KerasScorer.load(tiny_bundle, 8).reconstruct(images)
    expected = error_maps(images, reconstructions)
    for record in anomalies:
        number, verdict = int(record.key or b""), json.loads(record.value or b"")
        map_ = found[record.partition, record.key]
        assert source_of(OutRecord("", 0, None, None, list(map_.headers)))[1] == verdict["source"]["offset"]  # type: ignore[arg-type]
        peak = float(header(map_.headers, "reconstream-map-peak") or b"nan")
        assert peak == verdict["region"]["peak"] == pytest.approx(region_of(expected[number]).peak, rel=1e-4)
        levels = decode(map_.value, "image/png", ImageSpec(*SHAPE)).image[..., 0]
        np.testing.assert_allclose(levels / 255 * peak, expected[number], rtol=1e-4, atol=peak / 500)
