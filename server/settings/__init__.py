"""All settings: command-line flags and ``PHI3V_*`` environment variables, declared once."""

from server.settings.hosts import DEFAULT_PORTS, is_loopback, parse_host
from server.settings.model_settings import CommandSettings, ModelSettings, Revision
from server.settings.server_settings import Settings, unprotected

__all__ = [
    "DEFAULT_PORTS",
    "CommandSettings",
    "ModelSettings",
    "Revision",
    "Settings",
    "is_loopback",
    "parse_host",
    "unprotected",
]
