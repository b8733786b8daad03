"""Checkpoints behind an OpenAI-compatible endpoint. Knows no env, imports nothing of ours."""
