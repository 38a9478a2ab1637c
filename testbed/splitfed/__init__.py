"""What EMO is compared with, where that is more than federated learning of another network."""
