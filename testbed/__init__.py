"""The simulator: the nodes that a fleet runs, without the fleet; and the demo."""
