"""This worker's place among all, and what the workers agree on."""
