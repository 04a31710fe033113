"""Pure functions of (tokens, memory): nothing here knows about files, ranks or optimisers."""
