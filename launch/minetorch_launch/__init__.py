"""Starts one training process per device and keeps them together."""
