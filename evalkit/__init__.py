"""Play episodes against any OpenAI-compatible URL, record them, judge them, show them."""
