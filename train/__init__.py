"""GRPO on rollouts of evalkit through the served policy. Empty until the training loop is built."""
