"""The worker processes of one attempt, as the launcher sees them."""
