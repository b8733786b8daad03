"""For human eyes: progress, verdicts in words, reports."""
