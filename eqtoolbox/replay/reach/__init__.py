"""What a model and its loss can reach, as it was, and how it is put back."""
