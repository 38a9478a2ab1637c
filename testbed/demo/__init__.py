"""`emo demo`: all three tiers on this machine."""
