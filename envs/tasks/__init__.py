"""Tasks with an answer to check: one question or a few, no world that moves on."""
