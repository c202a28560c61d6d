"""The obvious loop: one thread, kafka-python, a batch of one poll, acknowledged before the commit."""

from kafka import KafkaConsumer, KafkaProducer

from tests.bench.scoring import BatchScorer
from tests.bench.task import answer, asked, cpu_s, report


def main() -> None:
    """Answer the task's messages."""
    task = asked()
    scorer = BatchScorer(task.bundle, task.batch, task.encoding)
    began = cpu_s()
    consumer = KafkaConsumer(
        task.source,
        bootstrap_servers=task.bootstrap,
        group_id=task.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=task.batch,
    )
    producer = KafkaProducer(bootstrap_servers=task.bootstrap, acks="all", linger_ms=2, compression_type="lz4")
    answered = 0
    while answered < task.count:
        records = [record for of in consumer.poll(timeout_ms=500).values() for record in of]
        if not records:
            continue
        errors = scorer.errors([record.value for record in records])
        futures = [
            producer.send(task.output, answer(record.partition, record.offset, error, scorer.threshold), record.key)
            for record, error in zip(records, errors, strict=True)
        ]
        producer.flush()
        for future in futures:
            future.get(0)
        consumer.commit()
        answered += len(records)
    producer.close()
    consumer.close()
    report(began, answered)


if __name__ == "__main__":
    main()
