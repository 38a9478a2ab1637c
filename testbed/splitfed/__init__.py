"""Split learning (SplitFed V1: sfl-cloud, sfl-edge), which EMO is compared with."""
