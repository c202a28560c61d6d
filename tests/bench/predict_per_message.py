"""What a tutorial's reader would write: kafka-python, and `model.predict` for every message."""

import keras
import numpy as np
from kafka import KafkaConsumer, KafkaProducer

from tests.bench.scoring import BatchScorer
from tests.bench.task import answer, asked, cpu_s, report
from worker.core.bundle import SCORER


def main() -> None:
    """Answer the task's messages."""
    task = asked()
    threshold = BatchScorer(task.bundle, task.batch, task.encoding).threshold
    model = keras.models.load_model(f"{task.bundle}/{SCORER}", compile=False)
    shape = model.inputs[0].shape[1:]
    model.predict(np.zeros((1, *shape), np.uint8), verbose=0)
    began = cpu_s()
    consumer = KafkaConsumer(
        task.source, bootstrap_servers=task.bootstrap, group_id=task.group, auto_offset_reset="earliest"
    )
    producer = KafkaProducer(bootstrap_servers=task.bootstrap)
    answered = 0
    for record in consumer:
        image = np.frombuffer(record.value, np.uint8).reshape(1, *shape)
        error = float(model.predict(image, verbose=0)["error"][0])
        producer.send(task.output, answer(record.partition, record.offset, error, threshold))
        answered += 1
        if answered == task.count:
            break
    producer.flush()
    producer.close()
    consumer.close()
    report(began, answered)


if __name__ == "__main__":
    main()
