"""One round's updates become one model."""
