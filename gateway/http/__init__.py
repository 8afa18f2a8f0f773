"""The HTTPS server: connections, request bodies, WebSockets, Status answers, who asks and what he may."""
