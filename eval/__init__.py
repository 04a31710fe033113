"""Evaluation: numbers that travel with their protocol."""
