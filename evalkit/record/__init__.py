"""What was played, as immutable records, and where it lies on disk."""
