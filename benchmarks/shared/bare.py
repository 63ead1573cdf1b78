"""Bare watchdog, as a program: prints a file's name and digest after it has read the file.

    python benchmarks/shared/bare.py DIRECTORY

This is what a loop's author writes in ten minutes: an Observer, and a handler that keeps the bytes.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer


class Handler(FileSystemEventHandler):
    """Reads each file that was written to."""

    def on_modified(self, event: FileSystemEvent) -> None:
        """Take the bytes, and say so."""
        if event.is_directory:
            return
        path = os.fsdecode(event.src_path)
        print(path, hashlib.sha256(Path(path).read_bytes()).hexdigest(), flush=True)


def main() -> None:
    """Watch until standard input ends."""
    observer = Observer()
    observer.schedule(Handler(), sys.argv[1], recursive=True)
    observer.start()
    print("ready", flush=True)
    sys.stdin.read()
    observer.stop()


if __name__ == "__main__":
    main()
