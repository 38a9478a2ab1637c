"""`emo chaos`: a fleet under faults, and the judge of what is left."""
