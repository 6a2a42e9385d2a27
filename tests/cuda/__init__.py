"""What only an accelerator shows; where a CPU can, it is run there too, small."""
