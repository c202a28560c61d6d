"""Whatever codec a producer has chosen, its records are read; none is taken for damage."""

import uuid
from collections.abc import Callable

import pytest

from tests.conftest import Broker
from tests.support.kafka import KafkaWorld, produce, read_all
from tests.support.pipelines import running
from worker.core.errors import ExitCode
from worker.core.records import OutRecord


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_every_codec_is_read(kafka: Broker, topics: Callable[..., str], codec: str, client_name: str) -> None:
    options = {"bootstrap_servers": kafka.bootstrap}
    world = KafkaWorld(
        options,
        topics(1),
        topics(1),
        topics(1),
        group=f"codec-{uuid.uuid4().hex[:12]}",
        exactly_once=False,
        client_name=client_name,
    )
    produce(options, [OutRecord(world.input, 0, None, bytes([i] * 6), []) for i in range(30)], compression_type=codec)
    with running(
        world.source(), world.publisher(), output_topic=world.output, dead_letter_topic=world.letters
    ) as worker:
        answers = read_all(options, world.output, 30)
        assert worker.stop() is ExitCode.STOPPED
    world.close()
    assert len(answers) == 30
    assert read_all(options, world.letters) == []
