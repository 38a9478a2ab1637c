"""The observer's page: its paths, who may ask, and the stream of what happens."""
