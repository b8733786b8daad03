"""What can be seen of the gateway: counts, exposition, traces, access log."""
