"""The device: federated learning, and a tap on the split that offers activations to the edge."""
