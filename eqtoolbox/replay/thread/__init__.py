"""What an evaluation changes for its own thread, and for no other."""
