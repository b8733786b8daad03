"""Replicas: what they are, how they are chosen, where they come from."""
