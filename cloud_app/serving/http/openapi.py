"""The endpoint's description for machines (OpenAPI 3.1) and for people (one page of HTML, nothing loaded from elsewhere).

Knows the paths and the shape of what goes in and out; the page is made from the description.
"""

from html import escape
from typing import Any

_PATHS = (
    ("get", "/v2", "Name, version and extensions of this server."),
    ("get", "/v2/health/live", "Is the process there? Needs no key."),
    ("get", "/v2/health/ready", "Can it be asked? Needs no key."),
    ("get", "/v2/models/{name}", "Metadata: version, input, outputs, labels, members, accuracy at export."),
    ("get", "/v2/models/{name}/ready", "Is this model loaded?"),
    ("get", "/v2/models/{name}/config", "Triton's model configuration."),
    ("get", "/v2/models/{name}/stats", "Counts and times of this model's requests and runs."),
    ("get", "/v2/models/stats", "The same of all models."),
    ("post", "/v2/models/{name}/infer", "Tensors in, tensors out: JSON, or binary after the JSON."),
    ("post", "/v2/models/{name}/predict", "An image file in, label and probabilities out."),
    ("post", "/v2/repository/index", "Every version in the repository, and whether it answers."),
    ("post", "/v2/repository/models/{name}/load", "Load the current version now. Needs a key."),
    ("post", "/v2/repository/models/{name}/unload", "Answer no more for this model. Needs a key."),
    ("get", "/metrics", "Figures for Prometheus."),
)
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"enum": ["UINT8", "FP32", "BYTES"]},
        "data": {"type": "array", "description": "flat, or nested as shape says"},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {
                "timeout": {"type": "integer", "description": "microseconds"},
                "binary_data_output": {"type": "boolean"},
            },
        },
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "classification": {"type": "integer"},
                            "binary_data": {"type": "boolean"},
                        },
                    },
                },
            },
        },
    },
}
_BODIES: dict[str, dict[str, Any]] = {
    "infer": {
        "application/json": {"schema": _REQUEST},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
    "predict": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
}


def document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1; every path also answers with `/versions/{version}` after the model's name."""
    error = {
        "description": "What was wrong, in words.",
        "content": _json({"type": "object", "required": ["error"]}),
    }
    paths: dict[str, dict[str, Any]] = {}
    for method, path, text in _PATHS:
        action = path.rsplit("/", 1)[1]
        operation: dict[str, Any] = {
            "summary": text,
            "responses": {"200": {"description": "Done."}, "4XX": error},
        }
        if action in _BODIES:
            operation["requestBody"] = {"required": True, "content": _BODIES[action]}
            operation["responses"]["503"] = {**error, "description": "Too much is waiting; see Retry-After."}
        if "{name}" in path:
            parameter = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
            operation["parameters"] = [parameter]
        paths.setdefault(path, {})[method] = operation
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "EMO: Open Inference Protocol v2", "version": version},
        "paths": paths,
        "components": {"securitySchemes": schemes},
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def page(version: str) -> str:
    """The paths and two lines to copy."""
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td><td>{escape(text)}</td></tr>"
        for method, path, text in _PATHS
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>EMO endpoint</title>
<style>body{{font:16px sans-serif;max-width:60em;margin:2em auto}}td{{padding:.2em .8em .2em 0}}</style>
<h1>EMO {escape(version)}: Open Inference Protocol v2</h1>
<p>For machines: <a href="/openapi.json">openapi.json</a>. Each model path also takes
<code>/versions/VERSION</code> after the name.</p>
<table>{rows}</table>
<pre>curl --data-binary @IMAGE http://HOST:PORT/v2/models/NAME/predict
curl http://HOST:PORT/v2/models/NAME</pre></html>
"""


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
