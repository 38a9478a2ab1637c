"""When a batch comes again (paper, section IV-C): Algorithm 1 and the scores that it goes by."""
