"""Decides what happens to executions, and does it."""
