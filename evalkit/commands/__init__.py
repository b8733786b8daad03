"""The commands beside playing: a module each, whose `command(words)` returns the exit code."""
