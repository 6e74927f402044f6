"""Simulated logs and their truth."""
