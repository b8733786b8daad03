"""Training runs as jobs: started, asked for, stopped, on this machine or on Modal."""
