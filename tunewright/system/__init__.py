"""This machine: its cores, its memory, and what other processes use of them."""
