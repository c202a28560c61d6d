"""Consume and produce with kafka-python, no model: what the client itself costs.

The worker's options for both sides, an answer of a verdict's size; batches of a poll, one commit a batch.
"""

from kafka import KafkaConsumer, KafkaProducer

from tests.bench.task import answer, asked, cpu_s, report

# A verdict has about 400 bytes.
FILLER = "x" * 280


def main() -> None:
    """Answer the task's messages with the same answer."""
    task = asked()
    began = cpu_s()
    consumer = KafkaConsumer(
        task.source,
        bootstrap_servers=task.bootstrap,
        group_id=task.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=500,
        isolation_level="read_committed",
    )
    producer = KafkaProducer(
        bootstrap_servers=task.bootstrap,
        acks="all",
        linger_ms=2,
        batch_size=256 << 10,
        compression_type="lz4",
    )
    value = answer(0, 0, 0.0, 1.0, filler=FILLER)
    answered = 0
    while answered < task.count:
        for records in consumer.poll(timeout_ms=500).values():
            for record in records:
                producer.send(task.output, value, record.key, [], record.partition)
            answered += len(records)
        consumer.commit()
    producer.flush()
    producer.close()
    consumer.close()
    report(began, answered)


if __name__ == "__main__":
    main()
