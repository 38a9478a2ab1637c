"""The cloud: rounds, FedAvg, the ensemble, its ONNX file and the endpoint that serves it."""
