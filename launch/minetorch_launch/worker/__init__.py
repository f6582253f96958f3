"""What runs inside a worker process. Standard library only: a worker imports nothing that its script does not use."""
