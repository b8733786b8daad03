"""Episodes are played here: policies, strategies, the one episode loop and its scheduler."""
