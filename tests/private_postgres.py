"""A PostgreSQL server of one's own in a temporary folder, for tests and benchmarks."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def binary(name):
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, BINARIES)]))


class Server:
    """A server of our own in a folder, on a socket there; it refuses to run as root, so root lends it to nobody."""

    def __init__(self, folder):
        self.folder, self.user = folder, "nobody" if os.geteuid() == 0 else getpass.getuser()
        self.options = {"user": self.user} if os.geteuid() == 0 else {}
        folder.mkdir(mode=0o777)
        if self.options:
            shutil.chown(folder, self.user)
        command = [binary("initdb"), "-D", folder / "data", "-A", "trust", "-U", "sweeper", "--no-sync"]
        self._run([*command, "--no-locale", "-E", "UTF8"])
        self.process = None

    def _run(self, command):
        subprocess.run(list(map(str, command)), check=True, capture_output=True, cwd=self.folder, **self.options)

    def start(self):
        # Its data would be lost with the machine's power, not with the server's life.
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off"]
        command = [binary("postgres"), "-D", self.folder / "data", *settings]
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **self.options,
        )
        socket, deadline = self.folder / ".s.PGSQL.5432", time.monotonic() + 30
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self

    def kill(self):
        """As a power cut would: SIGQUIT is PostgreSQL's immediate shutdown, with no checkpoint."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    @property
    def url(self):
        return f"postgresql+psycopg://sweeper@/postgres?host={self.folder}"

    def forget(self):
        """Drop all tables."""
        from sqlalchemy import create_engine, text

        engine = create_engine(self.url)
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        engine.dispose()
