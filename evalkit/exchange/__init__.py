"""Runs in the formats of others, and the logs of others as runs. One module a format."""
