"""Act: move or hold the parameters of a training along what its symmetries leave free."""

__all__: list[str] = []
