"""Fits the autoencoder, calibrates its threshold and writes the bundle that the worker serves."""
