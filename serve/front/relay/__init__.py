"""What passes through, and on what: heads, bodies, names, connections to replicas."""
