"""Forms: what a continuous symmetry is made of, as data, and one evaluator for one or many."""
