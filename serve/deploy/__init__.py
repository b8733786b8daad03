"""Serving somewhere else than here: the config of a deployment, and what its containers run."""
