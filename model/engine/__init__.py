"""The inference engine: takes requests and returns text deltas. Independent of HTTP."""
