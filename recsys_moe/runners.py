"""Where the units of a stage run: here, one after the other, or as Ray tasks.

A unit is a file or a bucket. A stage function takes what all units share and one unit, reads and
writes files, and returns a small value; what it writes does not depend on who runs it.
"""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from recsys_moe.errors import RequestError

_LIGHT_THREADS = 2

Shared = TypeVar("Shared")
Unit = TypeVar("Unit")
Result = TypeVar("Result")


class Runner(Protocol):
    """Runs one function over many units."""

    def map(
        self,
        function: Callable[[Shared, Unit], Result],
        shared: Shared,
        units: Sequence[Unit],
        *,
        is_light: bool = False,
    ) -> Iterator[Result]:
        """Yield the results in the order of the units; light ones need little memory."""
        ...


class LocalRunner:
    """One unit after the other in this process, light ones two at a time."""

    def map(
        self,
        function: Callable[[Shared, Unit], Result],
        shared: Shared,
        units: Sequence[Unit],
        *,
        is_light: bool = False,
    ) -> Iterator[Result]:
        """Yield the results in the order of the units."""
        if not is_light:
            for unit in units:
                yield function(shared, unit)
            return
        with ThreadPoolExecutor(_LIGHT_THREADS) as pool:
            yield from pool.map(partial(function, shared), units)


class RayRunner:
    """Units as Ray tasks, at most `workers` at once; a task whose worker dies is run again.

    All workers must see the output folder and the logs under the same paths. The package must be
    installed where they run.

    Args:
        workers: How many units run at once.
        cpus: How many CPUs a unit takes of Ray's account.
        address: The cluster, as `ray.init` takes it; None starts one on this machine.
    """

    def __init__(self, *, workers: int, cpus: float = 1.0, address: str | None = None) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            wanted = "a whole number of at least 1"
            raise RequestError("runner.workers", wanted=wanted, got=repr(workers))
        self.workers, self.cpus, self.address = workers, cpus, address
        self._ray: Any = None

    def map(
        self,
        function: Callable[[Shared, Unit], Result],
        shared: Shared,
        units: Sequence[Unit],
        *,
        is_light: bool = False,
    ) -> Iterator[Result]:
        """Yield the results in the order of the units."""
        ray = self._connected()
        told = ray.put(shared)
        task = ray.remote(num_cpus=self.cpus, max_retries=3)(function)
        running: deque[Any] = deque()
        waiting = iter(units)
        for unit in waiting:
            running.append(task.remote(told, unit))
            if len(running) >= self.workers:
                yield self._result(running.popleft())
        while running:
            yield self._result(running.popleft())

    def _result(self, reference: Any) -> Any:
        """Return a task's result; its error is raised as it was there."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None

    def _connected(self) -> Any:
        if self._ray is None:
            try:
                import ray
            except ModuleNotFoundError:
                wanted = "the extra ray: pip install 'recsys-moe[ray]'"
                raise RequestError("runner=ray", wanted=wanted, got="no package ray") from None
            if not ray.is_initialized():
                self._connect(ray)
            self._ray = ray
        return self._ray

    def _connect(self, ray: Any) -> None:
        """Start Ray here, or join the cluster at the address; workers import what we can import."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(
                address=self.address,
                num_cpus=None if self.address else max(1, round(self.workers * self.cpus)),
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError) as error:
            got = str(error).splitlines()[0] if str(error) else type(error).__name__
            what = f"runner.address={self.address}"
            raise RequestError(what, wanted="a Ray cluster that answers", got=got) from error
