"""The serving side over HTTP."""
