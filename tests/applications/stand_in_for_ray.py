"""A stand-in for Ray: the calls that `adv_train.cli.cluster` makes, with a thread for each task."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any


class Died(BaseException):
    """Raised by a task whose worker is to have died."""


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"a traceback, and {cause}")
        self.cause = cause


class WorkerCrashedError(RayError):
    pass


class StandIn:
    """A cluster.

    Attributes:
        options: What each task asked for.
        most: Tasks that ran at once, at most.
        said: Settings that it was joined with.
        cancelled: Tasks that were stopped.
        joined: Whether it is in use.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, gpus: int = 0, error: Exception | None = None) -> None:
        self.options, self.most, self.said, self.joined = list[dict[str, Any]](), 0, dict[str, Any](), False
        self.cancelled: list[Future[Any]] = []
        self._gpus, self._error, self._running, self._lock = gpus, error, 0, threading.Lock()
        self._pool = ThreadPoolExecutor(8)

    def is_initialized(self) -> bool:
        return self.joined

    def init(self, **settings: Any) -> None:
        if self._error is not None:
            raise self._error
        self.said, self.joined = settings, True

    def shutdown(self) -> None:
        self.joined = False
        self._pool.shutdown()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, **({"GPU": float(self._gpus)} if self._gpus else {})}

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        self.options.append(options)
        return lambda function: SimpleNamespace(remote=lambda *found: self._pool.submit(self._run, function, *found))

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        try:
            return function(*arguments)
        finally:
            with self._lock:
                self._running -= 1

    def wait(self, tasks: Sequence[Future[Any]], num_returns: int) -> tuple[list[Any], list[Any]]:
        assert num_returns == 1 and tasks
        wait(tasks, return_when=FIRST_COMPLETED)
        ended = next(task for task in tasks if task.done())
        return [ended], [task for task in tasks if task is not ended]

    def get(self, task: Future[Any]) -> Any:
        try:
            return task.result()
        except Died as error:
            raise WorkerCrashedError("The worker died unexpectedly while executing this task.\nMore lines.") from error
        except Exception as error:
            raise RayTaskError(error) from error

    def cancel(self, task: Future[Any], *, force: bool) -> None:
        assert force  # a worker that computes takes no notice of anything else
        self.cancelled.append(task)
