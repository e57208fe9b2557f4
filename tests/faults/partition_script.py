"""What `test_partitions` runs as root of namespaces of its own: network and mounts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from icechunk import (
    IcechunkError,
    ObjectStorage,
    Repository,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
)
from tests.faults.operations import (
    CONFIG,
    HISTORY,
    START,
    _add,
    lay_out,
    messages,
    newest,
    read,
    write,
)
from tests.servers import S3Server, s3_server

#: A request is given up after a second, and is tried twice.
SETTINGS = StorageSettings(
    retries=StorageRetriesSettings(max_tries=2, initial_backoff_ms=1, max_backoff_ms=1),
    timeouts=StorageTimeoutSettings(operation_timeout_ms=1000),
)
HERE, THERE = "10.77.0.1", "10.77.0.2"
#: What an operation may take that finds nobody: looks and attempts are bounded, too.
MOST_SECONDS = 100


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def through(server: S3Server, host: str) -> ObjectStorage:
    port = server.endpoint_url.rpartition(":")[2]
    made = server.storage("r", endpoint_url=f"http://{host}:{port}")
    storage = made.with_settings(SETTINGS)
    assert isinstance(storage, ObjectStorage)
    return storage


def refused(call: Callable[[], Any], *words: str) -> IcechunkError:
    began = time.monotonic()
    try:
        call()
    except IcechunkError as error:
        assert any(word in str(error) for word in words), error
        assert time.monotonic() - began < MOST_SECONDS
        return error
    raise AssertionError("it worked")


def whole(repository: Repository, expected: dict[int, int], commits: int) -> None:
    storage = repository.storage
    assert newest(storage) == expected
    assert len(messages(storage)) == len(HISTORY) + commits
    repository.verify(deep=True).raise_if_damaged()


def cut(
    server: S3Server, line: Callable[[bool], None], host: str, *, ends_connections: bool = True
) -> None:
    """Before, in the middle of, and after a commit."""
    repository = Repository.open(through(server, host), CONFIG)
    session = repository.writable_session("main")
    write(session, {5: 5})
    line(False)
    if ends_connections:
        refused(lambda: session.commit("mine"), "repo", "snapshots/", "manifests/", "transactions/")
    refused(lambda: Repository.open(through(server, host)), "repo")
    # it comes back while somebody waits
    timer = threading.Timer(1.5, line, [True])
    timer.start()
    latest = time.monotonic() + MOST_SECONDS
    while session.branch is not None and time.monotonic() < latest:
        # a name that is not resolved is told of at once
        with suppress(IcechunkError):
            session.commit("mine")
    timer.join()
    whole(Repository.open(through(server, host), CONFIG), {**START, 5: 5}, 1)
    # cut at some moment of each of many commits
    done = 0
    for number in range(6):
        session = repository.writable_session("main")
        write(session, {4: number})
        timer = threading.Timer(0.004 * number, line, [False])
        timer.start()
        with suppress(IcechunkError):
            session.commit(f"cut {number}")
        timer.join()
        line(True)
        if session.branch is not None:
            session.commit(f"cut {number}")
        done += 1
        assert newest(repository.storage)[4] == number
    whole(repository, {**START, 5: 5, 4: done - 1}, 1 + done)


def name(server: S3Server, hosts: Path) -> None:
    """A name that is resolved, then not, then again."""

    def known(is_known: bool) -> None:
        hosts.write_text("127.0.0.1 localhost\n" + "127.0.0.1 storage.test\n" * is_known)

    known(True)
    cut(server, known, "storage.test", ends_connections=False)


def workers(server: S3Server, line: Callable[[bool], None], host: str) -> None:
    """A job whose parts are cut off from the storage, and go on later."""
    plain = Repository.open(through(server, host), CONFIG)
    plain.jobs.create("j", keys=[2, 3, 4], message="ours")
    repository = Repository.open(through(server, host), CONFIG)
    job = repository.jobs.open("j")
    job.run(_add, keys=[2])
    line(False)
    refused(lambda: job.run(_add, keys=[3]), "jobs/", "part", "repo")
    refused(job.finish, "jobs/", "repo")
    line(True)
    job.run(_add, keys=[4])
    assert read(plain.readonly_session("main")) == START
    # the cut one may have come through, though nobody was told
    if 3 not in job.status().done:
        job.run(_add, keys=[3])
    job.finish()
    whole(plain, {**START, 2: 101, 3: 101, 4: 101}, 1)


def relay(address: str, port: int) -> None:
    """Pass connections to an address of the line on to the server, which listens elsewhere."""
    listening = socket.create_server((address, port))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    while True:
        near, _ = listening.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


def serve(folder: Path) -> None:
    """Be the other side: a server, and what passes connections on once the line is there."""
    run("ip", "link", "set", "lo", "up")
    with s3_server(folder) as server:
        print(json.dumps(asdict(server)), flush=True)
        sys.stdin.readline()
        port = int(server.endpoint_url.rpartition(":")[2])
        threading.Thread(target=relay, args=(THERE, port), daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()


@contextmanager
def elsewhere(folder: Path) -> Iterator[tuple[S3Server, Callable[[bool], None]]]:
    """Run a server in a network of its own; yield it, and what cuts the line or mends it."""
    command = ["unshare", "-n", sys.executable, __file__, "serve", str(folder)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        described = json.loads(process.stdout.readline())
        there = ("nsenter", "-t", str(process.pid), "-n", "ip")
        run("ip", "link", "add", "here", "type", "veth", "peer", "name", "there")
        run("ip", "link", "set", "there", "netns", str(process.pid))
        run("ip", "address", "add", f"{HERE}/24", "dev", "here")
        run("ip", "link", "set", "here", "up")
        run(*there, "address", "add", f"{THERE}/24", "dev", "there")
        run(*there, "link", "set", "there", "up")
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"

        def line(works: bool) -> None:
            # requests arrive all the same: it is the answers that are lost
            run(*there, "route", "del" if works else "add", "blackhole", f"{HERE}/32")

        described["shell"] = tuple(described["shell"])
        try:
            yield S3Server(**described), line
        finally:
            process.stdin.close()


def main(what: str, folder: Path) -> None:
    run("ip", "link", "set", "lo", "up")
    if what == "serve":
        serve(folder)
    elif what == "name":
        hosts, resolver, switch = folder / "hosts", folder / "resolv.conf", folder / "nsswitch"
        hosts.write_text("127.0.0.1 localhost\n")
        resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        switch.write_text("hosts: files\n")
        run("mount", "--bind", str(hosts), "/etc/hosts")
        run("mount", "--bind", str(resolver), "/etc/resolv.conf")
        run("mount", "--bind", str(switch), "/etc/nsswitch.conf")
        with s3_server(folder) as server:
            lay_out(server.storage("r"), 2)
            name(server, hosts)
    else:
        with elsewhere(folder) as (server, line):
            lay_out(through(server, THERE), 2)
            {"cut": cut, "workers": workers}[what](server, line, THERE)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
