"""Who is told of a step."""
