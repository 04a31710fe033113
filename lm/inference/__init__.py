"""Whatever assigns probabilities to a stream of tokens, and what is done with it."""
