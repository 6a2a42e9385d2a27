"""Search: parameter symmetries proposed from what a loss runs, and confirmed by numbers."""
