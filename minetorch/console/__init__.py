"""What a run shows on the console: progress bars and figures."""
