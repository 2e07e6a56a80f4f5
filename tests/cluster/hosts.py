"""Several hosts on one machine: what `ray up` and a sweep find on machines of their own.

Each host has its own network, processes, name, home, /tmp, /dev/shm and an sshd; its data and cache
folders stand at the same path on all hosts and are other folders on each. The hosts share one
folder, as over NFS, and read the checkout and the virtual environment from the machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOLS = {
    "ip": "iproute2",
    "ss": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "rsync": "rsync",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # where sshd and ip are, and not on every PATH

BOOT = r"""
set -e
mount --make-rprivate /
hostname {name}
for path in {read}; do  # nobody writes to what all hosts share
    mount --bind $path $path
    mount -o remount,bind,ro $path
done
for path in data cache home; do mount --bind {own}/$path {base}/$path; done
for path in {read} {base}; do  # those that are below /tmp are seen below the host's own
    case $path in /tmp/*) mkdir -p {own}$path; mount --rbind $path {own}$path;; esac
done
mount --rbind {own}/tmp /tmp
for file in passwd hosts resolv.conf; do mount --bind {own}/$file /etc/$file; done
mount -t tmpfs -o size=8g tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
exec {sshd} -D -f {own}/sshd_config -E {own}/sshd.log
"""

SSHD_CONFIG = """\
Port 22
ListenAddress {address}
HostKey {own}/host_key
AuthorizedKeysFile {base}/key.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PidFile none
"""

SCAN = """
import socket, sys

for port in range(1, 65536):
    with socket.socket() as probe:
        probe.settimeout(5)
        if probe.connect_ex((sys.argv[1], port)) == 0:
            print(port)
"""


def why_not() -> str | None:
    """Why hosts cannot be made here, if they cannot."""
    if os.geteuid() != 0:
        return "making hosts needs root"
    path = f"{os.environ['PATH']}:{SBIN}"
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=path) is None]:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        return f"{', '.join(missing)} missing: apt-get install {packages}"
    name = f"sg{secrets.token_hex(3)}"
    try:
        for command in (
            "unshare --pid --mount --uts --ipc --fork --mount-proc mount -t tmpfs tmpfs /mnt",
            f"ip netns add {name}",
            f"ip netns exec {name} true",
            f"ip link add {name} type bridge",
        ):
            done = _call(command.split(), check=False)
            if done.returncode:
                return f"not permitted here: {command}: {done.stderr.strip()}"
    finally:
        for command in (f"ip netns del {name}", f"ip link del {name}"):
            _call(command.split(), check=False)
    return None


def _call(command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:{SBIN}"}
    return subprocess.run(
        command, capture_output=True, text=True, check=check, timeout=60, env=environment
    )


@dataclass(frozen=True)
class Result:
    """What a command on a host came to; `said` has both of its outputs, in their order."""

    code: int
    said: str


class Host:
    """One of the hosts."""

    def __init__(self, name: str, address: str, own: Path, base: Path, netns: str) -> None:
        self.name, self.address, self.own = name, address, own
        self._base, self._netns = base, netns
        self._init = 0  # the pid, outside, of its process 1

    @property
    def data(self) -> Path:
        """Where the host's data lie, as seen from outside; on the host it is Hosts.data."""
        return self.own / "data"

    @property
    def cache(self) -> Path:
        """As `data`, for the caches that segray builds."""
        return self.own / "cache"

    def start(self, read: Sequence[Path], names: str) -> None:
        """Boot it: an sshd as its process 1."""
        own, base = self.own, self._base
        for folder in ("data", "cache", "home", "tmp"):
            (own / folder).mkdir(parents=True)
        (own / "tmp").chmod(0o1777)
        _call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(own / "host_key")])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{SBIN}"
        for file in (".bashrc", ".profile"):
            (own / "home" / file).write_text(f"export PATH={path}\n")
        passwd = Path("/etc/passwd").read_text()
        (own / "passwd").write_text(
            re.sub(r"^root:.*", f"root:x:0:0:root:{base}/home:/bin/bash", passwd, flags=re.M)
        )
        # As Debian writes it: the host's own name is an address of the loopback interface.
        (own / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n{names}")
        (own / "resolv.conf").write_text("")  # no name server: a look-up fails at once
        (own / "sshd_config").write_text(
            SSHD_CONFIG.format(address=self.address, own=own, base=base)
        )
        boot = BOOT.format(
            name=self.name,
            own=own,
            base=base,
            read=" ".join(shlex.quote(str(folder)) for folder in read),
            sshd=shutil.which("sshd", path=f"{os.environ['PATH']}:{SBIN}"),
        )
        command = ["ip", "netns", "exec", self._netns]
        command += ["unshare", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc"]
        command += ["--kill-child", "bash", "-c", boot]
        with (own / "boot.log").open("w") as log:
            self._shell = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": f"{os.environ['PATH']}:{SBIN}", "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        until = time.monotonic() + 20
        while not (self._find_init() and any(port == 22 for port, _ in self.listening())):
            if self._shell.poll() is not None or time.monotonic() > until:
                logs = (own / "boot.log", own / "sshd.log")
                log = [file.read_text() for file in logs if file.exists()]
                raise RuntimeError(f"host {self.name} did not start: {''.join(log)}")
            time.sleep(0.05)

    def _find_init(self) -> int:
        # `ip netns exec` became unshare; its child is process 1 of the new namespace.
        children = Path(f"/proc/{self._shell.pid}/task/{self._shell.pid}/children")
        with contextlib.suppress(OSError, IndexError):
            self._init = int(children.read_text().split()[0])
        return self._init

    def enter(self, command: str) -> list[str]:
        """The command line that runs `command` on the host, as somebody who logs in there."""
        login = ["env", "-i", f"HOME={self._base}/home", "USER=root", "LANG=C.UTF-8"]
        shell = ["bash", "-lc", f"cd && {command}"]
        return ["nsenter", "-t", str(self._init), "-n", "-p", "-m", "-u", "-i", *login, *shell]

    def start_command(self, command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command on the host; what it says goes to `log`."""
        with log.open("wb") as file:
            return subprocess.Popen(
                self.enter(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def run(self, command: str, timeout: float = 60) -> Result:
        """Run a command on the host to its end."""
        done = subprocess.run(
            self.enter(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return Result(done.returncode, done.stdout)

    def processes(self) -> list[str]:
        """The command lines of its processes, less its sshd and its kernel's."""
        said = self.run("ps -eo pid=,args=").said.splitlines()
        found = [line.split(maxsplit=1) for line in said]
        mine = ("ps -eo", "bash -lc", "sshd")
        return [args for pid, args in found if pid != "1" and not args.startswith(mine)]

    def kill_everything(self) -> None:
        """SIGKILL to every process but its sshd, which is its process 1: it can be logged in to."""
        _call(["nsenter", "-t", str(self._init), "-p", "bash", "-c", "kill -9 -1"], check=False)

    def vanish(self) -> None:
        """As a machine that is taken away: it answers nothing any more, and never comes back."""
        _call(["ip", "netns", "exec", self._netns, "ip", "link", "set", "eth0", "down"])
        self.end()

    def end(self) -> None:
        """SIGKILL to every process of the host."""
        self._shell.kill()  # its child, process 1, dies with it and takes all others along
        self._shell.wait(20)

    def listening(self) -> list[tuple[int, str]]:
        """The TCP ports on which somebody listens, with (address, program), lowest first."""
        said = _call(["ip", "netns", "exec", self._netns, "ss", "-Hltnp"]).stdout
        found = set()
        for line in said.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            if not address.startswith(("127.", "[::1]")):
                program = re.search(r'"([^"]*)"', line)
                found.add((int(port), program[1] if program else "?"))
        return sorted(found)

    def scan(self, other: Host) -> list[int]:
        """The TCP ports of another host that take a connection from this one."""
        command = ["ip", "netns", "exec", self._netns, sys.executable, "-I", "-c", SCAN]
        return sorted(int(port) for port in _call([*command, other.address]).stdout.split())


@dataclass(frozen=True)
class Hosts:
    """All hosts, and what is the same on each."""

    base: Path
    key: Path  # of the ssh key that opens each of them
    by_name: dict[str, Host]

    def __getitem__(self, name: str) -> Host:
        return self.by_name[name]

    @property
    def data(self) -> Path:
        """Where each host has its own data."""
        return self.base / "data"

    @property
    def cache(self) -> Path:
        """Where each host has its own caches."""
        return self.base / "cache"

    @property
    def shared(self) -> Path:
        """One folder for all hosts."""
        return self.base / "shared"


@contextlib.contextmanager
def make_hosts(base: Path, names: Sequence[str], read: Sequence[Path]) -> Iterator[Hosts]:
    """Hosts for as long as the context lasts. `read`: folders of the machine that they may read.

    Bridge, namespaces and network have names and numbers of this run's own.
    """
    tag = f"sg{secrets.token_hex(3)}"
    network = _free_network()
    addresses = {name: str(network[11 + at]) for at, name in enumerate(names)}
    for folder in ("data", "cache", "home", "shared"):
        (base / folder).mkdir()
    key = base / "key"
    _call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    hosts = Hosts(
        base,
        key,
        {
            name: Host(name, address, base / "hosts" / name, base, f"{tag}-{name}")
            for name, address in addresses.items()
        },
    )
    table = "".join(f"{address} {name}\n" for name, address in addresses.items())
    with contextlib.ExitStack() as stack:
        _ip(f"link add {tag} type bridge")
        stack.callback(_ip, f"link del {tag}", check=False)
        _ip(f"addr add {network[1]}/24 dev {tag}")
        _ip(f"link set {tag} up")
        for at, (name, host) in enumerate(hosts.by_name.items()):
            netns, cable = f"{tag}-{name}", f"{tag}v{at}"
            _ip(f"netns add {netns}")
            stack.callback(_ip, f"netns del {netns}", check=False)
            _ip(f"link add {cable} type veth peer name eth0 netns {netns}")
            stack.callback(_ip, f"link del {cable}", check=False)
            _ip(f"link set {cable} master {tag} up")
            for command in (
                f"addr add {host.address}/24 dev eth0",
                "link set eth0 up",
                "link set lo up",
                f"route add default via {network[1]}",
            ):
                _ip(f"-n {netns} {command}")
            stack.callback(_end, host)
            others = table.replace(f"{host.address} {name}\n", "")
            host.start(read, others)
        yield hosts


def _end(host: Host) -> None:
    if hasattr(host, "_shell"):
        host.end()


def _ip(arguments: str, *, check: bool = True) -> None:
    done = _call(["ip", *arguments.split()], check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {arguments}: {done.stderr.strip()}")


def _free_network() -> ipaddress.IPv4Network:
    """A /24 of the private range that no route of this machine leads to."""
    routes = json.loads(_call(["ip", "-json", "route"]).stdout)
    taken = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in routes
        if route["dst"] != "default"
    ]
    while True:
        third = secrets.randbelow(256 * 56)
        network = ipaddress.IPv4Network(f"10.{200 + third // 256}.{third % 256}.0/24")
        if not any(network.overlaps(other) for other in taken):
            return network
