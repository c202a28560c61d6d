"""Pure rules: bytes and records in, values out. No Kafka, Keras, Prometheus, sockets, clocks or environment."""
