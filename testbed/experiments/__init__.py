"""Studies: each a file that runs by itself (`python -m testbed.experiments.NAME`), too slow for the tests."""
