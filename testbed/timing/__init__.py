"""When a round's work would be done: scenarios, costs, a virtual clock."""
