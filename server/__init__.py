"""The wire: Azure's and OpenAI's chat APIs over ``model``. Never imports torch or transformers."""

__version__ = "0.2.0"
