"""The endpoint: its paths, bodies, connections, limits and /metrics, on Starlette's routes and uvicorn."""
