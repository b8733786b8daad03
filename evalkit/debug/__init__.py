"""One episode at a time: stepped, changed, forked, replayed; `session` is the core."""
