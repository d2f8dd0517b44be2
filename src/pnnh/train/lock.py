"""One writer per folder: a file lock that the operating system takes back when its process ends, however it ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pnnh._errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: no lock, as before
    fcntl = None


class Lock:
    """A record lock on `path`. It keeps other processes out, not this one; network file systems honour it too."""

    def __init__(self, path: Path) -> None:
        self.path, self._handle = path, None

    def take(self) -> None:
        """Raises UsageError if another process has it, with that process's number."""
        if fcntl is None:
            return
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            raise UsageError(
                f"{self.path.parent} is being written by process {owner}; wait for it or choose another --out"
            ) from None
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        self._handle = handle

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()
