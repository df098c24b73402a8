"""The runs that wait for a process, and which of them a free process takes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from adv_train.comparison import Cell


class Task:
    """The commands that remain to be run for a cell.

    Attributes:
        cell: The cell.
        words: The words after ``adv-train`` of the next command; empty when none remains.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self._commands = cell.commands()
        self.advance()

    def advance(self) -> bool:
        """Go on to the next command; return whether there is one."""
        self.words = next(self._commands, [])
        return self.words != []

    @property
    def trained(self) -> bool:
        """Whether its next command evaluates."""
        return self.words[0] == "eval"


class Waiting:
    """The tasks that no process runs. Several threads use it.

    Some processes prefer to evaluate and the others to train. If each process finished one cell after another, then
    three long evaluations on two processes would take as long as four.

    Args:
        tasks: The tasks, in the order in which they start.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)
        self._unfinished = len(tasks)
        self._changed = threading.Condition()

    def take(self, *, trained: bool) -> Task | None:
        """Wait for a task and remove it, trained or untrained if there is such a one; return None if all have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._unfinished <= 0)
            if self._unfinished <= 0:
                return None
            task = next((task for task in self._tasks if task.trained == trained), self._tasks[0])
            self._tasks.remove(task)
            return task

    def put_back(self, task: Task) -> None:
        """Add a task that was taken and has a next command."""
        with self._changed:
            self._tasks.append(task)
            self._changed.notify()

    def end(self) -> None:
        """Count a task that was taken and has ended."""
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let no further task be taken."""
        with self._changed:
            self._unfinished = 0
            self._changed.notify_all()
