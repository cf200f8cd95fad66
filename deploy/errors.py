"""What can go wrong between a checkpoint and its being served.

TandemError
└── DeployError
    ├── NotDeployable    that checkpoint or release may not be served
    ├── TransferFailed   files did not arrive whole: no space, no permission, a wrong sha256
    ├── HostUnreachable  the other host does not answer, is unknown, or refuses the key
    │   └── HostRefused  its key is not the known one, or it refuses ours: no use to try again
    └── ServerFailed     the inference server cannot be reached, refuses the release, or answers wrongly
        └── ServerDown   whoever asked it stands on its own host, and nobody listens there
"""

from registry.errors import TandemError


class DeployError(TandemError):
    """Root of this room."""


class NotDeployable(DeployError):
    """That checkpoint or release may not be served."""


class TransferFailed(DeployError):
    """Files did not arrive whole."""


class HostUnreachable(DeployError):
    """The other host does not answer, is unknown, or refuses the key."""


class HostRefused(HostUnreachable):
    """Its key is not the known one, or it refuses ours. No use to try again."""


class ServerFailed(DeployError):
    """The inference server cannot be reached, refuses the release, or answers wrongly."""


class ServerDown(ServerFailed):
    """Nobody listens where the inference server should, asked on its own host: no link is to blame."""
