"""Serves a model repository: requests to answers, whatever the transport. No torch in here."""
