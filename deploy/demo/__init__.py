"""The whole system once through: fit, Kafka, worker, feed, verdicts, comparison."""
