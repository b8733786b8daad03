"""The control plane: the application for everything that is not the data plane."""
