"""The speed of ghealth beside its peers, and how its cost grows."""
