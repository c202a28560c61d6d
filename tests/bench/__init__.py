"""Throughput, measured against the bare model."""
