"""Depth: rendered scenes, depth networks that come with leadline, and depth metrics."""
