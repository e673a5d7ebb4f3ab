"""What operators see: metrics, traces, and what the status page shows."""
