"""Small apps that the loopback's own tests deploy."""
