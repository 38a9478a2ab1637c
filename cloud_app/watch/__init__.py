"""`emo watch`: an observer that only reads, and its page."""
