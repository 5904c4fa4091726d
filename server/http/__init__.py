"""Between a socket and a route: limits, guards, middleware, event streams."""
