"""A package of a program that keeps state in a module of its own."""
