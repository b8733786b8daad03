"""GRPO on rollouts of evalkit's episode loop, through the served policy."""
