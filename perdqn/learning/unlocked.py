"""A compiled program called without Python's lock, so that Python goes on in another thread meanwhile.

Knows nothing about what the program computes. torch's own way to run one holds the lock throughout; here its
machine code is called through the C interface that torch gives such programs.
"""

from __future__ import annotations

import ctypes
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor

_NEEDS_TORCH = "it has parts that only torch can call"


class Unlocked:
    """The program of a package that `perdqn.learning.inductor` has compiled for the CPU.

    Args:
        package: the file.
        num_inputs: of the program.

    Raises:
        OSError: the package cannot be used without torch's own loader; says why.
    """

    def __init__(self, package: Path, num_inputs: int) -> None:
        with zipfile.ZipFile(package) as archive, tempfile.TemporaryDirectory() as folder:
            names = archive.namelist()
            if any(name.endswith(".json") and not name.endswith("_metadata.json") for name in names):
                raise OSError(_NEEDS_TORCH)
            (library,) = (name for name in names if name.endswith(".so"))
            self._library = ctypes.CDLL(archive.extract(library, folder))
        self._container = ctypes.c_void_p()
        create = self._library.AOTInductorModelContainerCreateWithDevice
        if create(ctypes.byref(self._container), ctypes.c_size_t(1), b"cpu", None) != 0:
            raise OSError("its machine code cannot be started")
        self._run = self._library.AOTInductorModelContainerRunSingleThreaded
        self._inputs = (ctypes.c_void_p * num_inputs)()
        self._output = (ctypes.c_void_p * 1)()

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """The program's one output, as a list.

        Raises:
            RuntimeError: it failed; torch has written why to standard error.
        """
        for i, capsule in enumerate(torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(inputs)):
            self._inputs[i] = _address(capsule, None)
        counts = ctypes.c_size_t(len(self._inputs)), ctypes.c_size_t(1)
        if self._run(self._container, self._inputs, counts[0], self._output, counts[1], None, None) != 0:
            raise RuntimeError("the compiled learning step failed")
        capsule = _capsule(self._output[0], None, None)
        return [torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule)]


_address = ctypes.pythonapi.PyCapsule_GetPointer
_address.argtypes, _address.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_capsule.restype = ctypes.py_object
