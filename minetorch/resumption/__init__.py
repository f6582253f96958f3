"""What a checkpoint holds of a run, and how all ranks save it and restore it."""
