"""A real Apache Kafka (KRaft) from Python packages alone, for the demo, the tests and the benchmarks."""

from deploy.local_kafka.admin import create_topics
from deploy.local_kafka.cluster import KafkaCluster
from deploy.local_kafka.jars import JarError, ensure_jars
from deploy.local_kafka.node import ClusterError

__all__ = ["ClusterError", "JarError", "KafkaCluster", "create_topics", "ensure_jars"]
