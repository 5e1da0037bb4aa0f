"""Frozen weights that are kept in fewer bits than they compute in."""
