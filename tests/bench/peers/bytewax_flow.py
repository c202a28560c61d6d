"""Bytewax: its Kafka operators and flat_map_batch, on one worker; it stops at the end of the topic.

https://docs.bytewax.io/stable/api/bytewax/bytewax.operators.html describes flat_map_batch. Without its recovery
store, which costs more, it remembers no positions.
"""

from collections.abc import Iterator

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from tests.bench.scoring import BatchScorer
from tests.bench.task import answer, asked, cpu_s, report


def main() -> None:
    """Answer the task's messages."""
    task = asked()
    scorer = BatchScorer(task.bundle, task.batch, task.encoding)

    def score(messages: list[KafkaSourceMessage]) -> Iterator[KafkaSinkMessage]:
        for start in range(0, len(messages), task.batch):
            part = messages[start : start + task.batch]
            for message, error in zip(part, scorer.errors([message.value for message in part]), strict=True):
                yield KafkaSinkMessage(None, answer(message.partition, message.offset, error, scorer.threshold))

    began = cpu_s()
    flow = Dataflow("bench")
    source = kop.input("in", flow, brokers=[task.bootstrap], topics=[task.source], tail=False, batch_size=task.batch)
    answers = op.flat_map_batch("score", source.oks, score)
    kop.output(
        "out",
        answers,
        brokers=[task.bootstrap],
        topic=task.output,
        add_config={"acks": "all", "linger.ms": "2", "compression.type": "lz4"},
    )
    run_main(flow)
    report(began, task.count)


if __name__ == "__main__":
    main()
