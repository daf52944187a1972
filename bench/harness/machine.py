"""What a run costs: CPU and memory of a process tree, CPU of the whole machine, flushes of the disk.

A tree is measured by a control group of its own (version 1 or 2), so that processes which come and go
are counted too. Where none can be made, the tree is walked in /proc: then what a child used counts
once its parent has waited for it.
"""
import ctypes
import os
import pathlib
import platform
import resource
import signal
import subprocess
import threading
import time

TICKS = os.sysconf('SC_CLK_TCK')
CGROUPS = pathlib.Path('/sys/fs/cgroup')


def read(path, default=''):
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return default


def describe():
    """Machine, kernel and date in one line, as every published figure needs them."""
    model = next((line.split(':', 1)[1].strip() for line in read('/proc/cpuinfo').splitlines()
                  if line.startswith('model name')), platform.machine())
    memory = int(read('/proc/meminfo', 'MemTotal: 0').split()[1]) // (1 << 20)
    system = next((line.split('=', 1)[1].strip('"') for line in read('/etc/os-release').splitlines()
                   if line.startswith('PRETTY_NAME=')), 'Linux')
    return (f'{os.cpu_count()} x {model}, {memory} GiB, {system}, kernel {platform.release()}, '
            f'{time.strftime("%Y-%m-%d", time.gmtime())}')


def file_system(path):
    """(type, device name without /dev/ or '') of the file system that holds path."""
    best = ('', '', '')
    path = str(pathlib.Path(path).resolve())
    for line in read('/proc/mounts').splitlines():
        device, mount, kind = line.split()[:3]
        if (path + '/').startswith(mount.rstrip('/') + '/') and len(mount) >= len(best[0]):
            best = (mount, kind, device)
    return best[1], best[2].removeprefix('/dev/') if best[2].startswith('/dev/') else ''


def system_cpu():
    """(busy, total) seconds of all cores since boot."""
    fields = [int(x) for x in read('/proc/stat').splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS, sum(fields) / TICKS


def disk_counters(device):
    """(flush requests, octets written) of a block device; zeros where it is unknown."""
    while device and not pathlib.Path(f'/sys/class/block/{device}').exists():
        return 0, 0
    fields = read(f'/sys/class/block/{device}/stat').split()
    if len(fields) < 16:
        return 0, 0
    return int(fields[15]), int(fields[6]) * 512


class Tree:
    """A process and its descendants: started in a control group, measured, and ended by id."""

    def __init__(self, name):
        self.name = f'millrace-bench-{os.getpid()}-{name}'
        self.process = None
        self.directories = []
        self.version = 0
        self.peak_memory = 0
        self._sampling = None
        self._stop = threading.Event()
        try:
            self._make()
        except OSError:
            self._remove()
            self.version = 0

    def _make(self):
        if (CGROUPS / 'cgroup.controllers').exists():
            controllers = read(CGROUPS / 'cgroup.controllers').split()
            if 'cpu' in controllers and 'memory' in controllers:
                (CGROUPS / 'cgroup.subtree_control').write_text('+cpu +memory')
            self.directories = [CGROUPS / self.name]
            self.version = 2
        elif (CGROUPS / 'cpuacct').exists():
            self.directories = [CGROUPS / 'cpuacct' / self.name]
            if (CGROUPS / 'memory').exists():
                self.directories.append(CGROUPS / 'memory' / self.name)
            self.version = 1
        else:
            return
        for directory in self.directories:
            directory.mkdir()

    def start(self, command, log, **options):
        def prepare():
            # Ends with us, whatever happens to us.
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            for directory in self.directories:
                (directory / 'cgroup.procs').write_text(str(os.getpid()))
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            for most in (1 << 20, hard):
                try:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (most, max(most, hard)))
                    break
                except (ValueError, OSError):
                    continue
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                        stderr=subprocess.STDOUT, preexec_fn=prepare,
                                        start_new_session=True, **options)
        self._sampling = threading.Thread(target=self._sample, daemon=True)
        self._sampling.start()

    def pids(self):
        if self.version:
            return [int(x) for x in read(self.directories[0] / 'cgroup.procs').split()]
        found, parents = [], {}
        for entry in os.listdir('/proc'):
            if entry.isdigit():
                stat = read(f'/proc/{entry}/stat')
                if stat:
                    parents.setdefault(int(stat.rsplit(')', 1)[1].split()[1]), []).append(int(entry))
        waiting = [self.process.pid] if self.process else []
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            waiting += parents.get(pid, [])
        return found

    def cpu_seconds(self):
        """User and system time so far."""
        if self.version == 2:
            for line in read(self.directories[0] / 'cpu.stat').splitlines():
                if line.startswith('usage_usec'):
                    return int(line.split()[1]) / 1e6
        if self.version == 1:
            return int(read(self.directories[0] / 'cpuacct.usage', '0')) / 1e9
        ticks = 0
        for pid in self.pids():
            stat = read(f'/proc/{pid}/stat')
            if stat:
                ticks += sum(int(x) for x in stat.rsplit(')', 1)[1].split()[11:15])
        return ticks / TICKS

    def memory(self):
        """Octets of anonymous memory: what the programs hold, without the page cache."""
        if self.version == 2:
            for line in read(self.directories[0] / 'memory.stat').splitlines():
                if line.startswith('anon '):
                    return int(line.split()[1])
        if self.version == 1 and len(self.directories) > 1:
            for line in read(self.directories[1] / 'memory.stat').splitlines():
                if line.startswith('total_rss '):
                    return int(line.split()[1])
        total = 0
        for pid in self.pids():
            for line in read(f'/proc/{pid}/status').splitlines():
                if line.startswith('RssAnon:'):
                    total += int(line.split()[1]) * 1024
        return total

    def _sample(self):
        while not self._stop.wait(0.1):
            self.peak_memory = max(self.peak_memory, self.memory())

    def settle(self, seconds=0.3, longest=10):
        """Waits until the tree does (almost) nothing."""
        deadline = time.monotonic() + longest
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(seconds)
            now = self.cpu_seconds()
            if now - before < 0.02 * seconds:
                return
            before = now

    def stop(self, patience=10):
        """SIGTERM, then SIGKILL, to processes of this tree only. Returns the exit code."""
        self._stop.set()
        if self._sampling:
            self._sampling.join()
        code = None
        if self.process:
            if self.process.poll() is None:
                self.process.terminate()
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    pass
            for _ in range(50):
                left = [pid for pid in self.pids() if pid != os.getpid()] if self.version else (
                    self.pids() if self.process.poll() is None else [])
                if not left:
                    break
                for pid in left:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                self.process.poll()
                time.sleep(0.05)
            code = self.process.wait()
        self._remove()
        return code

    def _remove(self):
        for directory in self.directories:
            try:
                directory.rmdir()
            except OSError:
                pass
        self.directories = []
