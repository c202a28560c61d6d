"""Publishes raw images at a rate that never waits for anybody: `python -m tests.bench.publisher ORDER`, in JSON.

Each record's timestamp is the time at which it was due, so that a delay of the publisher counts as latency and hides
none (coordinated omission). Prints by how much it was late at most, in milliseconds.
"""

import json
import sys
import time

from kafka import KafkaProducer

from tests.bench.contenders import PARTITIONS
from tests.bench.workloads import WORKLOADS, messages

TICK_S = 0.001


def main() -> None:
    """Publish `seconds` at `rate` to `topic`."""
    order = json.loads(sys.argv[1])
    values, rate = messages("raw"), order["rate"]
    headers = [("content-type", WORKLOADS["raw"].content_type.encode())]
    producer = KafkaProducer(bootstrap_servers=order["bootstrap"], acks="all")
    producer.partitions_for(order["topic"])
    late = 0.0
    start = time.time() + 0.1
    for number in range(int(rate * order["seconds"])):
        due = start + number / rate
        early = due - time.time()
        if early > TICK_S:
            time.sleep(early)
        late = max(late, -early)
        producer.send(
            order["topic"], values[number % len(values)], None, headers, number % PARTITIONS, int(due * 1000)
        )
    producer.flush()
    producer.close()
    sys.stdout.write(json.dumps({"late_ms": late * 1000}) + "\n")


if __name__ == "__main__":
    main()
