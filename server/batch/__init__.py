"""Files of requests, processed without HTTP by the same rules as the routes."""
