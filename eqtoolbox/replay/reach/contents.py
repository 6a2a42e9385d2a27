"""Contents: the entries of a tensor of whatever layout, kept by value and written back in place."""

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from eqtoolbox.replay.reach.slots import Exchange, Slot

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


class Contents(Slot):
    """A tensor that no module has registered: its entries, its gradient and its flag."""

    __slots__ = ("_alias", "_flag", "_grad", "_node", "_version", "held")

    def __init__(self, owner: Tensor, path: Any) -> None:
        self.owner, self.path = owner, path
        self._alias = owner.detach()  # the memory itself, were the tensor given another
        self._version = version(owner)
        self._flag, self._grad = owner.requires_grad, gradient(owner)
        self._node = owner.grad_fn  # which cannot be given back
        self.held = copied(self._alias)

    def count_as(self, other: "Contents") -> None:
        """Leave the version that `other` knows, which is that of the training now."""
        self._version = other._version

    def moved(self, exchange: Exchange) -> bool:
        owner = self.owner
        if owner.requires_grad != self._flag or gradient(owner) is not self._grad:
            return True
        if owner.grad_fn is not self._node or elsewhere(owner, self._alias):
            return True
        if version(owner) != self._version:
            return True
        return not same_entries(self._alias, self.held)  # `.data` counts no version

    def put_back(self, exchange: Exchange) -> None:
        owner = self.owner
        with torch.no_grad():
            if not same_entries(self._alias, self.held):
                write(self._alias, self.held)
            put_back(owner, self._alias, self._flag, self._grad)
        count_from([owner], [self._version])


def put_back(tensor: Tensor, alias: Tensor, flag: bool, grad: Tensor | None) -> None:
    """Give a tensor its memory, its place in graphs, its flag and its gradient back."""
    if not (flag or tensor.is_leaf or tensor._is_view()):
        tensor.detach_()  # a graph has been written into it
    if elsewhere(tensor, alias):
        with _mode(alias):
            tensor.data = alias
    if tensor.layout is torch.sparse_coo and tensor.is_coalesced() != alias.is_coalesced():
        tensor._coalesced_(alias.is_coalesced())
    if tensor.requires_grad != flag and (flag or tensor.is_leaf):
        tensor.requires_grad_(flag)
    if gradient(tensor) is not grad:
        tensor.grad = grad


def parts(tensor: Tensor) -> list[Tensor]:
    """Tensors with memory that its entries lie in, none of them twice in one.

    Example:
        >>> [tuple(part.shape) for part in parts(torch.ones(1).expand(6))]
        [()]
        >>> [tuple(part.shape) for part in parts(torch.eye(3).to_sparse())]
        [(2, 3), (3,)]
    """
    if tensor.layout is torch.strided and type(tensor) in _PLAIN and not tensor.is_nested:
        return [tensor if 0 not in tensor.stride() else _once(tensor)]
    whole: Any = tensor
    if is_traceable_wrapper_subclass(whole):
        inner = [getattr(whole, name) for name in whole.__tensor_flatten__()[0]]
        return [part for one in inner if isinstance(one, Tensor) for part in parts(one)]
    if tensor.is_nested:
        return [tensor.values()]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in _COMPRESSED:
        return [getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]]
    return [] if tensor.device.type == "meta" else [tensor]


_PLAIN = (Tensor, torch.nn.Parameter)


def _once(tensor: Tensor) -> Tensor:
    for k in reversed(range(tensor.dim())):
        if tensor.stride(k) == 0 and tensor.shape[k] > 1:  # an expanded one: all the same entry
            tensor = tensor.select(k, 0)
    return tensor


def copied(tensor: Tensor) -> list[Tensor]:
    """Copies of its parts."""
    return [part.clone() for part in parts(tensor)]


def write(tensor: Tensor, held: list[Tensor]) -> None:
    """Write such copies back into it."""
    with _mode(tensor):
        for part, copy in zip(parts(tensor), held, strict=True):
            part.copy_(copy)


def same_entries(tensor: Tensor, held: list[Tensor]) -> bool:
    """Whether all entries are those of the copies, NaN being so, too."""
    return all(map(_same, parts(tensor), held))


def _same(a: Tensor, b: Tensor) -> bool:
    if a.layout is not torch.strided:  # of the processor's neural network library
        a, b = a.to_dense(), b.to_dense()
    if torch.equal(a, b):
        return True
    if a.is_quantized:
        return False
    return torch.equal(*(x.contiguous().view(-1).view(torch.uint8) for x in (a, b)))


def elsewhere(tensor: Tensor, alias: Tensor) -> bool:
    """Whether a tensor has other memory, another type or another shape than its alias had."""
    if tensor.is_nested:  # whose shape cannot be asked
        return addresses(tensor) != addresses(alias)
    if tensor.dtype != alias.dtype or tensor.shape != alias.shape:
        return True
    if tensor.layout is torch.strided and type(tensor) in _PLAIN:
        return tensor.data_ptr() != alias.data_ptr() or tensor.stride() != alias.stride()
    return tensor.layout is not alias.layout or addresses(tensor) != addresses(alias)


def addresses(tensor: Tensor) -> list[int]:
    """Where the memory of each of its parts begins; none of those that tell nothing."""
    found = []
    for part in parts(tensor):
        with suppress(RuntimeError, NotImplementedError):
            found.append(part.untyped_storage().data_ptr())
    return found


def gradient(tensor: Tensor) -> Tensor | None:
    """What has been summed up in `.grad`."""
    return tensor.grad if tensor.is_leaf else None


def version(tensor: Tensor) -> int:
    """How often it has been written into; of an inference tensor nobody counts that."""
    return -1 if tensor.is_inference() else tensor._version


def count_from(tensors: list[Tensor], versions: list[int]) -> None:
    """Count writes from where they were: a graph that has saved a tensor finds it unwritten."""
    counted = [(t, v) for t, v in zip(tensors, versions, strict=True) if v >= 0]
    if counted:
        counters = _unsafe_preserve_version_counter(tuple(t for t, _ in counted))
        counters.prev_versions = tuple(v for _, v in counted)
        counters.__exit__()


def _mode(tensor: Tensor) -> AbstractContextManager[Any]:
    """Scope in which it may be written into."""
    return torch.inference_mode() if tensor.is_inference() else nullcontext()
