"""The Trainer's options: what each means, and what it may be."""
