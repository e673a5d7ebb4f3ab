"""The HTTP listener for operators. It shares nothing with the gRPC listener but the event loop."""
