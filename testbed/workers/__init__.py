"""Worker processes of the testbed, and what they share."""
