"""The HTTP server: Azure's and OpenAI's chat APIs for ``model``. Never imports torch or transformers."""

__version__ = "0.2.0"
