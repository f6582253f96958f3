"""Effects that attach to hook points: one effect, one file."""
