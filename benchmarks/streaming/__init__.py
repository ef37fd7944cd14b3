"""Streaming libraries compared: exact resume, other numbers of workers and ranks, eviction, network faults, cost."""
