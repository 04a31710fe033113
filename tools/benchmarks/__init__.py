"""Benchmarks: each module is one, with a typed `main`; tools/bench.py finds them."""
