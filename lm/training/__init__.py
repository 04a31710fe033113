"""Training under DeepSpeed: one engine, one loop, checkpoints that lose nothing."""
