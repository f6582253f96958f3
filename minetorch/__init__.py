"""Trains PyTorch models, on one CPU or on many GPUs, and never loses work."""
