"""`emo simulate` and `emo compare`: plans, runs and their folders."""
