"""The Compressive Transformer: model, training, scoring and generation."""
