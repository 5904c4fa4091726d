"""HTTP routes: parse requests, call the layers below, and build responses."""
