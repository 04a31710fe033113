"""One reader per corpus: what to read, which documents it holds, which split each is in."""
