"""The front door: client connections, requests on their way, the control plane."""
