"""Games with an exact oracle."""
