"""Choose: which symmetry the data have and a model would gain by, with the evidence for it."""

__all__: list[str] = []
