"""Runs one script for certain, inside a Pod or under the local engine."""
