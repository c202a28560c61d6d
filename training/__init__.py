"""Reconstream."""
