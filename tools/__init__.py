"""Programs around runs, and the scripts and benchmarks of a checkout."""
