"""Serving many players from one copy of the model: lean forward, caches, batching."""
