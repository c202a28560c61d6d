"""Consume and produce with confluent-kafka, no model: what librdkafka and its binding cost. See pass_through."""

from confluent_kafka import Consumer, Producer

from tests.bench.pass_through import FILLER
from tests.bench.task import answer, asked, cpu_s, report


def main() -> None:
    """Answer the task's messages with the same answer."""
    task = asked()
    began = cpu_s()
    consumer = Consumer(
        {
            "bootstrap.servers": task.bootstrap,
            "group.id": task.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([task.source])
    producer = Producer(
        {
            "bootstrap.servers": task.bootstrap,
            "acks": "all",
            "linger.ms": 2,
            "batch.size": 256 << 10,
            "compression.type": "lz4",
        }
    )
    value = answer(0, 0, 0.0, 1.0, filler=FILLER)
    answered = 0
    while answered < task.count:
        for message in consumer.consume(500, 0.1):
            if message.error() is None:
                message.value()  # taken, as a model would
                producer.produce(task.output, value, message.key(), message.partition())
                answered += 1
        producer.poll(0)
        if answered:
            consumer.commit(asynchronous=False)
    producer.flush()
    consumer.close()
    report(began, answered)


if __name__ == "__main__":
    main()
