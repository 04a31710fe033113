"""Texts to tokens and back: one file a kind of tokenizer."""
