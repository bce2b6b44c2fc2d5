"""See there."""
