"""Import path of the Ray Serve application: ``serve run server.ray_serve:app``."""

from server.ray.serve import app

__all__ = ["app"]
