"""A broker of our own, and child processes that end with us."""
