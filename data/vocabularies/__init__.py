"""One file per kind of vocabulary; `data.vocab` is the entry point."""
