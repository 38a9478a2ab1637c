"""Messages and their bytes: frames, topics, codecs, forms of weights, and the checks that stand before each."""
