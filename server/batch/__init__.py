"""Files of requests answered without HTTP, by the same rules as the routes."""
