"""The replay cache (paper, section IV-B): disk, memory, sampling, prefetch."""
