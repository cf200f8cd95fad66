"""What can go wrong between a request and the work.

TandemError
└── WorkerError
    ├── RequestError        a task's arguments are not what its contract says
    ├── BrokerUnavailable   Redis cannot be reached, or refuses the password
    ├── DeviceBusy          a GPU is in use, or has too little free, or cannot be read: wait
    ├── DeviceUnreadable    the driver says nothing about a GPU
    ├── NoAnswer            nothing answered in time; the request is still in the queue
    ├── StackError          the embedded stack cannot start or stop
    └── TaskFailed          a task ended with an error; the message is the task's own
"""

from __future__ import annotations

from registry.errors import TandemError


class WorkerError(TandemError):
    """Root of this room."""


class RequestError(WorkerError):
    """A task's arguments are not what its contract says."""


class BrokerUnavailable(WorkerError):
    """Redis cannot be reached, or refuses the password."""


class DeviceBusy(WorkerError):
    """A device cannot be used now. The work waits, with this reason shown."""


class DeviceUnreadable(WorkerError):
    """The driver says nothing about a GPU."""


class NoAnswer(WorkerError):
    """Nothing answered in time."""


class StackError(WorkerError):
    """The embedded stack cannot start or stop."""


class TaskFailed(WorkerError):
    """A task ended with an error."""
