"""What operators run beside a node: doctor, fleet checks, example configurations."""
