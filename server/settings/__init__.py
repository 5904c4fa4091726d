"""All settings: command-line flags and ``PHI3V_*`` environment variables, from one table."""

from server.settings.hosts import is_loopback, parse_host
from server.settings.model_settings import ModelSettings, Revision
from server.settings.server_settings import Settings

__all__ = ["ModelSettings", "Revision", "Settings", "is_loopback", "parse_host"]
