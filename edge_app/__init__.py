"""The edge: the replay cache, the communication controller and the overlay that trains from them."""
