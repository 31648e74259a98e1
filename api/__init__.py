"""The server's doors: the realtime WebSocket, health, metrics and errors on the wire."""
