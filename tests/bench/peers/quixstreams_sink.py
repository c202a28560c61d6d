"""Quix Streams: its BatchingSink, whose batches are written before each commit.

https://quix.io/docs/quix-streams/connectors/sinks/custom-sinks.html describes it; at-least-once.
"""

from confluent_kafka import Producer
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch

from tests.bench.scoring import BatchScorer
from tests.bench.task import answer, asked, cpu_s, report

PARTITIONS = 6


def main() -> None:
    """Answer the task's messages."""
    task = asked()
    scorer = BatchScorer(task.bundle, task.batch, task.encoding)
    producer = Producer(
        {"bootstrap.servers": task.bootstrap, "acks": "all", "linger.ms": 2, "compression.type": "lz4"}
    )

    class Scoring(BatchingSink):
        def write(self, batch: SinkBatch) -> None:
            for chunk in batch.iter_chunks(task.batch):
                items = list(chunk)
                for item, error in zip(items, scorer.errors([item.value for item in items]), strict=True):
                    producer.produce(task.output, answer(batch.partition, item.offset, error, scorer.threshold))
                    producer.poll(0)

        def flush(self) -> None:
            super().flush()
            if producer.flush(30):
                raise RuntimeError("answers were not acknowledged in time")

    began = cpu_s()
    application = Application(
        broker_address=task.bootstrap,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        # A sink's batch is of one partition: a full one of each.
        commit_every=task.batch * PARTITIONS,
        commit_interval=1.0,
        loglevel="WARNING",
    )
    topic = application.topic(task.source, value_deserializer="bytes", key_deserializer="bytes")
    application.dataframe(topic).sink(Scoring())
    application.run(count=task.count)
    report(began, task.count)


if __name__ == "__main__":
    main()
