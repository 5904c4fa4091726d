"""What lies between a socket and a route: bounds, guards, middleware, event streams."""
