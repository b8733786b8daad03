"""Engines: one inference server process each, started, watched and stopped."""
