"""What the benches compare with: Flower, pfl, FastAPI."""
