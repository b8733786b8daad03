"""Trained checkpoints behind an OpenAI-compatible endpoint. Knows no env and imports nothing of ours."""
