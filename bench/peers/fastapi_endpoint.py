"""The endpoint that one would write first, for `bench.serve` to compare with: FastAPI, JSON, one run a request.

python -m bench.peers.fastapi_endpoint MODEL.onnx THREADS
"""

import socket
import sys
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from cloud_app.serving.onnx_session import open_session


class Tensor(BaseModel):
    shape: list[int]
    data: list[int]


class Request(BaseModel):
    inputs: list[Tensor]


def main() -> None:
    session = open_session(Path(sys.argv[1]), int(sys.argv[2]))
    api = FastAPI()

    @api.post("/infer")
    def infer(request: Request) -> dict[str, list[list[float]]]:
        tensor = request.inputs[0]
        images = np.array(tensor.data, np.uint8).reshape(tensor.shape)
        logits, probabilities = session.run(None, {"images": images})
        return {"logits": logits.tolist(), "probabilities": probabilities.tolist()}

    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(api, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
