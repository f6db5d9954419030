"""A stand-in for CuPy, on NumPy, with CuPy's manners and stricter: for running on a processor what runs on GPUs.

- NumPy arrays and CuPy's do not mix: what CuPy refuses is refused, with `Refused`.
- Functions and methods take what CuPy's own take, where CuPy is installed to tell; names that it lacks are missing.
- Memory order is CuPy's: `asarray`, `astype`, `empty_like` keep Fortran order, ufuncs give C order.
- `log` counts what CuPy does unasked: transfers and waits that nobody wrote down. `.get()` is asked for, and in `gets`; what is
  sent is in `uploaded`, in bytes, and what CUDA is asked about itself in `asked`.
- Each device counts the bytes of live arrays, their peak, and what the pool holds; `capacity` is where memory ends.
- `RawKernel` compiles CUDA as C++, see `cuda_cpp`.

A module object, to be put in the place of CuPy in `sys.modules`.
"""

# ruff: noqa: N802 (names and signatures are CuPy's)

import collections
import inspect
import numbers
import operator
import weakref
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

from tests.standins.cuda_cpp import Launcher

try:
    import cupy as real
except ImportError:  # pragma: no cover
    real = None


class Refused(TypeError):  # noqa: N818 (what CuPy does)
    """What CuPy refuses, or takes for something else than what was meant."""


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


def _is_scalar(x):
    return isinstance(x, (numbers.Number, np.generic, bool))


def _bare(x, where):
    """What NumPy can reckon with, of an argument of a CuPy function."""
    if isinstance(x, Array):
        return x.bare
    if _is_scalar(x) or x is None or isinstance(x, (str, type, np.dtype, slice, type(Ellipsis))):
        return x
    if isinstance(x, (list, tuple)):
        return type(x)(_bare(y, where) for y in x)
    raise Refused(f"CuPy's {where} is given {type(x).__name__} {np.shape(x)}")


class Array:
    """cupy.ndarray."""

    __slots__ = ("__weakref__", "bare", "cupy", "device")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, bare, cupy):
        if bare.dtype.kind not in "biufc" or not bare.dtype.isnative:
            raise Refused(f"CuPy has no dtype {bare.dtype.str}")
        self.bare, self.cupy, self.device = bare, cupy, cupy.current
        cupy._count(bare)

    shape = property(lambda self: self.bare.shape)
    dtype = property(lambda self: self.bare.dtype)
    ndim = property(lambda self: self.bare.ndim)
    size = property(lambda self: self.bare.size)
    nbytes = property(lambda self: self.bare.nbytes)
    itemsize = property(lambda self: self.bare.itemsize)
    flags = property(lambda self: self.bare.flags)
    strides = property(lambda self: self.bare.strides)
    T = property(lambda self: self._view(self.bare.T))

    def _view(self, bare):
        return Array(bare, self.cupy)

    def _new(self, bare):
        return self.cupy._result(bare)

    def __len__(self):
        return len(self.bare)

    def __array__(self, *_args, **_kwargs):
        raise Refused("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __iter__(self):
        self.cupy.log["iteration"] += 1
        return (self._view(np.asarray(x)) for x in self.bare)

    def __bool__(self):
        self.cupy.log["bool()"] += 1
        return bool(self.bare)

    def __float__(self):
        self.cupy.log["float()"] += 1
        return float(self.bare)

    def __int__(self):
        self.cupy.log["int()"] += 1
        return int(self.bare)

    def __index__(self):
        self.cupy.log["index()"] += 1
        return operator.index(self.bare.item())

    def item(self):
        self.cupy.log["item()"] += 1
        return self.bare.item()

    def tolist(self):
        self.cupy.log["tolist()"] += 1
        return self.bare.tolist()

    def get(self, stream=None, order="C", out=None, blocking=True):
        self.cupy.gets += 1
        return np.array(self.bare, order=order)

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if casting is not None or subok is not None:
            raise Refused("casting and subok are not supported")
        if np.dtype(dtype) == self.dtype and not copy:
            return self
        return self._view(self.bare.astype(dtype, order=order))

    def copy(self, order="C"):
        return self._view(self.bare.copy(order))

    def reshape(self, *shape, order="C"):
        return self._view(self.bare.reshape(*shape, order=order))

    def ravel(self, order="C"):
        return self._view(self.bare.ravel(order))

    def diagonal(self, offset=0, axis1=0, axis2=1):
        return self._view(self.bare.diagonal(offset, axis1, axis2))

    def fill(self, value):
        self.bare.fill(_bare(value, "fill"))

    def _key(self, key):
        keys, found = key if isinstance(key, tuple) else (key,), []
        for part in keys:
            if isinstance(part, (np.ndarray, list)):
                self.cupy.log["index from the host"] += 1
            if isinstance(part, slice) and any(isinstance(end, Array) for end in (part.start, part.stop, part.step)):
                raise Refused("a slice by a CuPy scalar")
            found.append(part.bare if isinstance(part, Array) else part)
        if any(isinstance(part, np.ndarray) and part.dtype == bool for part in found):
            self.cupy.log["boolean index"] += 1
        fancy = any(isinstance(part, (np.ndarray, list)) for part in found)
        return (tuple(found) if isinstance(key, tuple) else found[0]), fancy

    def __getitem__(self, key):
        key, fancy = self._key(key)
        found = np.asarray(self.bare[key])
        return self._new(found) if fancy else self._view(found)

    def __setitem__(self, key, value):
        key, _ = self._key(key)
        self.bare[key] = _bare(value, "setitem")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__":
            return NotImplemented
        return self.cupy._ufunc(ufunc.__name__, *inputs, **kwargs)

    def __array_function__(self, func, types, args, kwargs):
        self.cupy.log[f"np.{func.__name__}"] += 1
        return getattr(self.cupy, func.__name__)(*args, **kwargs)


def _add_operators():  # noqa: C901
    def binary(name):
        def forward(self, other):
            return self.cupy._ufunc(name, self, other)

        def backward(self, other):
            return self.cupy._ufunc(name, other, self)

        def in_place(self, other):
            return self.cupy._ufunc(name, self, other, out=self)

        return forward, backward, in_place

    named = {"sub": "subtract", "mul": "multiply", "truediv": "true_divide", "pow": "power", "floordiv": "floor_divide"}
    named |= {"mod": "remainder", "and": "bitwise_and", "or": "bitwise_or", "add": "add", "matmul": "matmul"}
    for short, name in named.items():
        for prefix, method in zip(("", "r", "i"), binary(name), strict=True):
            setattr(Array, f"__{prefix}{short}__", method)
    compared = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"}
    for short, name in compared.items():
        setattr(Array, f"__{short}__", binary(name)[0])
    for short, name in {"neg": "negative", "invert": "invert", "abs": "absolute"}.items():
        setattr(Array, f"__{short}__", lambda self, name=name: self.cupy._ufunc(name, self))
    for name in ("sum", "mean", "prod"):

        def reduced(self, axis=None, dtype=None, out=None, keepdims=False, name=name):
            of_type = {} if dtype is None else {"dtype": dtype}
            return self._new(np.asarray(getattr(self.bare, name)(axis=axis, keepdims=keepdims, **of_type)))

        setattr(Array, name, reduced)
    for name in ("max", "min", "any", "all", "argmax", "argmin"):

        def found(self, axis=None, out=None, keepdims=False, name=name):
            return self._new(np.asarray(getattr(self.bare, name)(axis=axis, keepdims=keepdims)))

        setattr(Array, name, found)


_add_operators()


class _Pool:
    def __init__(self, cupy):
        self.cupy = cupy

    def used_bytes(self):
        return self.cupy.live[self.cupy.current]

    def total_bytes(self):
        return self.cupy.held[self.cupy.current]

    def free_bytes(self):
        return self.total_bytes() - self.used_bytes()

    def free_all_blocks(self, stream=None):
        self.cupy.held[self.cupy.current] = self.used_bytes()


class _Pinned:
    def free_all_blocks(self):
        pass


class _Device:
    def __init__(self, cupy, number=None):
        self.cupy, self.id, self.before = cupy, cupy.current if number is None else number, []

    def __enter__(self):
        if self.id >= self.cupy.devices:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.before.append(self.cupy.current)
        self.cupy.current = self.id
        return self

    def __exit__(self, *_):
        self.cupy.current = self.before.pop()


class _Runtime:
    def __init__(self, cupy):
        self.cupy = cupy

    def memGetInfo(self):
        self.cupy.asked.append("memGetInfo")
        capacity = self.cupy.capacity
        return capacity - self.cupy.held[self.cupy.current], capacity

    def getDeviceCount(self):
        self.cupy.asked.append("getDeviceCount")
        return self.cupy.devices


class _Cuda:
    def __init__(self, cupy):
        self.cupy, self.runtime = cupy, _Runtime(cupy)

    def is_available(self):
        self.cupy.asked.append("is_available")
        return self.cupy.devices > 0

    def Device(self, number=None):
        return _Device(self.cupy, number)

    @property
    def MemoryHook(self):
        """A class to be derived from; within its instances' context every allocation calls `malloc_postprocess`."""
        hooks = self.cupy.hooks

        class Hook:
            def __enter__(self):
                hooks.append(self)
                return self

            def __exit__(self, *_):
                hooks.remove(self)

        return Hook


class _Linalg:
    def __init__(self, cupy):
        self.cupy = cupy

    def norm(self, x, ord=None, axis=None, keepdims=False):  # noqa: A002
        return self.cupy._result(np.asarray(np.linalg.norm(_bare(x, "norm"), ord, axis, keepdims)))

    def eigvalsh(self, a, UPLO="L"):
        return self.cupy._result(np.linalg.eigvalsh(_bare(a, "eigvalsh"), UPLO))


class _RawKernel:
    def __init__(self, code, name, options=()):
        macros = dict(option.removeprefix("-D").split("=") for option in options)
        self.launcher = Launcher(code, name, macros["REAL"])

    def __call__(self, grid, block, args):
        for given in args:
            if isinstance(given, np.ndarray):
                raise Refused("a kernel is given a NumPy array")
        self.launcher(grid, block, [given.bare if isinstance(given, Array) else given for given in args])


class StrictCupy:
    """The module `cupy`, with `devices` GPUs of `capacity` bytes each."""

    ndarray = Array
    OutOfMemoryError = OutOfMemoryError

    def __init__(self, devices=1, capacity=80 * 10**9):
        self.devices, self.capacity, self.current = devices, capacity, 0
        self.log, self.gets, self.uploaded, self.asked = collections.Counter[str](), 0, 0, list[str]()
        self.hooks = []
        self.live, self.peak, self.held = (collections.Counter[int]() for _ in range(3))
        self._owned: dict[int, Any] = {}
        self.cuda, self.linalg = _Cuda(self), _Linalg(self)
        self.__name__, self.__spec__ = "cupy", ModuleSpec("cupy", None)

    def get_default_memory_pool(self):
        return _Pool(self)

    def get_default_pinned_memory_pool(self):
        return _Pinned()

    def RawKernel(self, code, name, options=(), backend="nvrtc"):
        return _RawKernel(code, name, options)

    def asarray(self, a, dtype=None, order=None, *, copy=None, blocking=False):
        return self.array(a, dtype, copy, order or "K", blocking=blocking)

    def ascontiguousarray(self, a, dtype=None):
        return self.asarray(a, dtype, "C")

    def array(self, obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
        if not isinstance(obj, Array):
            host = np.asarray(obj)
            order = "F" if order in "KAF" and (order == "F" or host.flags.fnc) else "C"
            self.uploaded += host.size * np.dtype(dtype or host.dtype).itemsize
            return Array(np.array(host, dtype, order=order), self)
        dtype = obj.dtype if dtype is None else np.dtype(dtype)
        same = dtype == obj.dtype and (order in "KA" or obj.flags.c_contiguous)
        return obj if same and not copy else Array(np.array(obj.bare, dtype, order=order), self)

    def empty_like(self, prototype, dtype=None, order="K", subok=None, shape=None):
        return Array(np.empty_like(_bare(prototype, "empty_like"), dtype, order), self)

    def __getattr__(self, name):
        theirs = getattr(real or np, name)  # AttributeError where CuPy has none
        if isinstance(getattr(np, name), np.ufunc):
            return lambda *args, **kwargs: self._ufunc(name, *args, **kwargs)
        if not callable(theirs) or isinstance(theirs, type):
            return theirs

        def call(*args, **kwargs):
            if real is not None:
                inspect.signature(theirs).bind(*args, **kwargs)
            of_numpy = getattr(np, name)
            out = of_numpy(*(_bare(x, name) for x in args), **{key: _bare(x, name) for key, x in kwargs.items()})
            return self._result(out)

        return call

    def _ufunc(self, name, *inputs, **kwargs):
        if real is not None and not hasattr(real, name):
            raise Refused(f"CuPy has no {name}")
        unknown = set(kwargs) - {"out", "dtype", "where", "casting"}
        if unknown:
            raise Refused(f"cupy.{name} knows no {unknown}")
        out = kwargs.pop("out", None)
        out = out[0] if isinstance(out, tuple) else out
        if name == "matmul":
            return self._matmul(out, *inputs)
        found = getattr(np, name)(*(_bare(x, name) for x in inputs), **kwargs)
        if out is None:
            return self._result(found)
        if found.shape != out.shape or not np.can_cast(found.dtype, out.dtype, "same_kind"):
            raise Refused(f"{name} gives {found.dtype} {found.shape}, which does not go into {out.dtype} {out.shape}")
        out.bare[...] = found
        return out

    def _matmul(self, out, a, b):
        a, b = (_bare(x, "matmul") for x in (a, b))
        dtype = np.result_type(a, b)
        # cuBLAS takes matrices in one piece and of one type; CuPy copies others.
        copied = sum(
            x.size * dtype.itemsize for x in (a, b) if x.dtype != dtype or not (x.flags.c_contiguous or x.flags.f_contiguous)
        )
        if out is None:
            found = self._result(np.matmul(a, b))
        else:
            if out.dtype != dtype or not out.flags.c_contiguous:
                raise Refused(f"matmul gives {dtype} in C order, out is {out.dtype}")
            if any(np.may_share_memory(out.bare, x) for x in (a, b)):
                copied += out.nbytes
            np.matmul(a, b, out=out.bare)
            found = out
        self._room(copied)
        return found

    def _result(self, found):
        """What a function gives: arrays in C order."""
        if isinstance(found, tuple):
            return tuple(self._result(part) for part in found)
        found = np.asarray(found)
        return Array(found if found.flags.c_contiguous else found.copy("C"), self)

    def _count(self, bare):
        owner = bare
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if id(owner) in self._owned:
            return
        size, device = owner.nbytes, self.current
        self._room(size)
        self.live[device] += size
        for hook in self.hooks:
            hook.malloc_postprocess(device_id=device, size=size, mem_size=size, mem_ptr=id(owner), pmem_id=0)
        self._owned[id(owner)] = weakref.finalize(owner, self._drop, id(owner), size, device)

    def _room(self, size):
        """Take note that so many bytes are taken, be it for a moment. Raises OutOfMemoryError where they are not there."""
        device = self.current
        wanted = self.live[device] + size
        if wanted > self.capacity:
            raise OutOfMemoryError(f"Out of memory allocating {size} bytes")
        self.peak[device], self.held[device] = max(self.peak[device], wanted), max(self.held[device], wanted)

    def _drop(self, owner, size, device):
        del self._owned[owner]
        self.live[device] -= size
