"""The plan: what each probe takes of memory and time at a size, before anything runs there."""
