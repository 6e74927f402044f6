"""Work that overlaps: iterators run ahead in threads, bounded, and fail as if they were not."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

_POLL_SECONDS = 0.1


def ahead(source: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield what `source` yields while a thread fetches up to `depth` items more.

    An error in the source is raised here, after the items before it. Closing this iterator stops
    the thread and waits for it.
    """
    items: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: tuple[T] | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                items.put(item, timeout=_POLL_SECONDS)
                return

    def fetch() -> None:
        try:
            for item in source:
                put((item,))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised in the consumer's thread
            put(error)

    thread = threading.Thread(target=fetch, name="ahead", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stopped.set()
        thread.join()


def parallel(
    function: Callable[[T], U], source: Iterator[T], workers: int
) -> Generator[U, None, None]:
    """Yield `function(item)` for each item in order, computed by `workers` threads.

    At most `2 * workers` items are taken from the source before the first result is asked for. An
    error of the source or the function is raised in its place, after the results before it.
    """
    pending: deque[Future[U]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="score") as pool:
        try:
            for future in _submit(pool, function, source):
                pending.append(future)
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _submit(
    pool: ThreadPoolExecutor, function: Callable[[T], U], source: Iterator[T]
) -> Iterator[Future[U]]:
    try:
        for item in source:
            yield pool.submit(function, item)
    except Exception as error:  # noqa: BLE001 - it is raised when its turn comes
        failed: Future[U] = Future()
        failed.set_exception(error)
        yield failed
