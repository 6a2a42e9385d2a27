"""Storage: where the numbers of a tensor lie, by which an operation's arguments are known again."""

from torch import Tensor


def place(tensor: Tensor) -> int:
    """The address of its storage; views of one tensor have one address."""
    return tensor.untyped_storage().data_ptr()
