"""A real PostgreSQL for tests: started on loopback for them, stopped and started again as they ask."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER, PASSWORD = "autobatch", "s3cret/with:odd@signs"
QUOTED = "s3cret%2Fwith%3Aodd%40signs"


def programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`: Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """One server with a folder of its own; not as root, which PostgreSQL refuses to be."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self._folder, self._bin = folder, bin_folder
        self._as: list[str] = []
        if os.getuid() == 0:
            account = next(name for name in ("postgres", "nobody") if _has(name))
            os.chown(folder, pwd.getpwnam(account).pw_uid, -1)
            self._as = ["runuser", "-u", account, "--"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self._as:
            os.chown(secret, pwd.getpwnam(self._as[2]).pw_uid, -1)
        self._run("initdb", "-D", "data", "-U", USER, "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")
        secret.unlink()
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}:{QUOTED}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        """At once, with every connection cut, as a crash does."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self._bin / program), *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,  # a server would keep a pipe open
            stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            text=True,
            timeout=120,
        )
        if done.returncode:
            log = self._folder / "log"
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}")


def _has(account: str) -> bool:
    try:
        pwd.getpwnam(account)
    except KeyError:
        return False
    return True


@contextmanager
def running() -> Iterator[Server]:
    """A server, gone afterwards."""
    bin_folder = programs()
    assert bin_folder is not None
    with tempfile.TemporaryDirectory(prefix="autobatch-postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = Server(folder, bin_folder)
        try:
            yield server
        finally:
            server.stop()
