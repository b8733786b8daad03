"""The data plane from the client's side: connections, and requests on their way."""
