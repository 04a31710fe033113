"""Data pipeline: text -> documents -> token shards -> lanes of segments."""
