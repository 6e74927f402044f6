"""An artifact's graphs in ONNX Runtime, on the CPU or on a CUDA device.

The runtime is imported when the first session is made: importing this module costs nothing.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from export.manifest import CORE_FILE, MODEL_FILE, PREPROCESS_FILE
from recsys_moe.errors import ArtifactError, RecsysMoeError, RequestError

Array = npt.NDArray[Any]

DEVICES = ("cpu", "cuda")
_CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
_MOST_WORKERS = 8
_ERROR, _FATAL = 3, 4


class GraphError(RecsysMoeError):
    """A graph raised on the rows it was given."""


class Engine(Protocol):
    """Runs batches of raw columns; `workers` threads may do so at once."""

    workers: int

    def run(self, feeds: Mapping[str, Array]) -> dict[str, npt.NDArray[np.float32]]:
        """Return each output, float32 [rows], for the columns of some rows.

        Raises:
            GraphError: The graph raised.
        """


def open_engine(folder: Path, outputs: Sequence[str], device: str) -> Engine:
    """Open the graphs of a verified artifact on a device.

    Raises:
        RequestError: The device is unknown, or there is no such device that works.
        ArtifactError: The runtime refuses a graph.
    """
    if device not in DEVICES:
        raise RequestError(
            f"device={device}", wanted=" or ".join(DEVICES), got=repr(device), choices=DEVICES
        )
    if device == "cuda":
        return _CudaEngine(folder, outputs)
    return _CpuEngine(folder, outputs)


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _CpuEngine:
    """`model.onnx` as it is: raw columns in, probabilities out."""

    def __init__(self, folder: Path, outputs: Sequence[str]) -> None:
        self.workers, threads = _share(num_cores())
        self._outputs = list(outputs)
        with _quiet():
            runtime = _runtime()
            self._model = _session(runtime, folder / MODEL_FILE, threads)
        self._errors = _errors(runtime)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, npt.NDArray[np.float32]]:
        """Return each output, float32 [rows], for the columns of some rows."""
        try:
            values = self._model.run(self._outputs, dict(feeds))
        except self._errors as error:
            raise GraphError(_first_line(error)) from error
        return dict(zip(self._outputs, values, strict=True))


class _CudaEngine:
    """`preprocess.onnx` on the CPU in several threads, `core.onnx` on the device, one at a time."""

    def __init__(self, folder: Path, outputs: Sequence[str]) -> None:
        self.workers, threads = _share(num_cores())
        self._outputs = list(outputs)
        self._device = threading.Lock()
        with _quiet() as messages:
            self._runtime = _runtime()
            self._runtime.set_default_logger_severity(_ERROR)
            preload = getattr(self._runtime, "preload_dlls", None)
            if preload is not None:
                preload()
            if _CUDA in self._runtime.get_available_providers():
                providers = [(_CUDA, _CUDA_OPTIONS), "CPUExecutionProvider"]
                self._core = _session(self._runtime, folder / CORE_FILE, 1, providers)
                working = self._core.get_providers()
            else:
                working = []
            self._runtime.set_default_logger_severity(_FATAL)
        if _CUDA not in working:
            raise RequestError(
                "device=cuda",
                wanted="a working CUDA provider",
                got=f"none ({_provider_reason(messages[0])}); use device=cpu to score on the CPU",
            )
        self._boundary = [item.name for item in self._core.get_inputs()]
        with _quiet():
            self._preprocess = _session(self._runtime, folder / PREPROCESS_FILE, threads)
        self._errors = _errors(self._runtime)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, npt.NDArray[np.float32]]:
        """Return each output, float32 [rows], for the columns of some rows."""
        try:
            values = self._run_core(self._preprocess.run(self._boundary, dict(feeds)))
        except self._errors as error:
            raise GraphError(_first_line(error)) from error
        return dict(zip(self._outputs, values, strict=True))

    def _run_core(self, tensors: Sequence[Array]) -> list[npt.NDArray[np.float32]]:
        """Copy the boundary to the device, run there, copy the outputs back."""
        with self._device:
            binding = self._core.io_binding()
            for name, tensor in zip(self._boundary, tensors, strict=True):
                value = self._runtime.OrtValue.ortvalue_from_numpy(
                    np.ascontiguousarray(tensor), "cuda", 0
                )
                binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, "cuda", 0)
            binding.synchronize_inputs()
            self._core.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return list(binding.copy_outputs_to_cpu())


def _share(cores: int) -> tuple[int, int]:
    """Split cores into workers and threads of each: whole batches at once need no waiting."""
    workers = min(cores, _MOST_WORKERS)
    return workers, max(1, cores // workers)


def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise RequestError(
            "onnxruntime",
            wanted="it installed (pip install 'recsys-moe[serve]')",
            got="no such module",
        ) from None
    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime  # type: ignore[no-any-return]


def _errors(runtime: ModuleType) -> tuple[type[Exception], ...]:
    """Return what the runtime raises: its own classes, which share no base, and Python's."""
    state = vars(runtime.capi.onnxruntime_pybind11_state).values()
    own = [kind for kind in state if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _session(
    runtime: ModuleType,
    path: Path,
    threads: int,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
) -> Any:
    """Open a graph; threads that wait give their core back, since cores are shared."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = _FATAL
    try:
        return runtime.InferenceSession(str(path), options, providers=list(providers))
    except _errors(runtime) as error:
        raise ArtifactError(
            str(path), wanted="a graph that ONNX Runtime opens", got=_first_line(error)
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Catch what libraries print while a session is made; at the end it is in the list yielded.

    The runtime writes to file descriptor 2 itself, below Python's `sys.stderr`.
    """
    printed: list[str] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield printed
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            printed.append(caught.read().decode(errors="replace"))


def _provider_reason(messages: str) -> str:
    """Pick the reason out of what the runtime wrote when CUDA did not start."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", messages)
    library = re.search(r"with error: ([^\n]+)", text)
    if library:
        return library.group(1).strip()
    lines = [line.strip() for line in text.splitlines() if "CUDA" in line or "cuda" in line]
    return re.sub(r"^\S+ \S+ \[[^\]]*\]\s*", "", lines[0])[:300] if lines else "not in this build"


def _first_line(error: Exception) -> str:
    """Return the first line of a library's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
