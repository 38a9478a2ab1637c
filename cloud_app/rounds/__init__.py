"""The rounds of federated learning: who is asked, what came, when a round closes, and the state that survives a restart."""
