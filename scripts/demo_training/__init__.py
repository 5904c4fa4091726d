"""Training and evaluation of the demo model: pictures and questions drawn by the project itself."""
