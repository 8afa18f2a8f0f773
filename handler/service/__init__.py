"""The gateway-facing gRPC service."""
