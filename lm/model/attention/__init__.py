"""Attention over memory and segment, and its ways to compute."""
