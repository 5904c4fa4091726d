"""Everything between sockets and routes: limits, guards, middleware, event streams."""
