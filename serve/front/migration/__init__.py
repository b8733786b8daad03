"""Goes on with a stream whose replica was lost."""
