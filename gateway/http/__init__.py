"""The HTTPS server: request bodies, WebSockets, Status responses, authentication and authorization."""
