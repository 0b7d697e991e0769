"""The paper's tasks, and demo tasks that need no download."""

from prefixembed.tasks.demo import DOCSTRING_TASKS, Task, demo_backbone, load_docstring_task
from prefixembed.tasks.paper import TaskSplit, fetch_task, list_tasks
from prefixembed.tasks.ready import demo_bank
from prefixembed.tasks.table import TaskInfo

# Pickles name the room, which is stable, and not a file in it.
for _kind in (Task, TaskInfo, TaskSplit):
    _kind.__module__ = __name__

__all__ = [
    "DOCSTRING_TASKS",
    "Task",
    "TaskInfo",
    "TaskSplit",
    "demo_backbone",
    "demo_bank",
    "fetch_task",
    "list_tasks",
    "load_docstring_task",
]
