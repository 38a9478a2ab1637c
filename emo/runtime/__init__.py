"""Binds a node to its channels: the port, the queues, the threads, and how it all ends."""
