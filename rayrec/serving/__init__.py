"""The service: a tuned policy answers requests for recommendations over HTTP, on Ray Serve."""
