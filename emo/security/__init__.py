"""Who belongs to a fleet, what its certificates are, and what its brokers let each node do."""
