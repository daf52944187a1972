"""What the system tests share: a network of their own, the programs, a DNS server.

Each test is a program: it exits 0, or with an exception, or with 77 and a line that says why it cannot
run here. It runs as root in a network namespace of its own, where only loopback exists, so it may use
any port and any 127.0.0.0/8 address, and nothing of it outlives it.
"""
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get('MILLRACE_BUILD', ROOT / 'build'))
# The relay under test: one built with a sanitizer, say, beside tools from BUILD.
RELAY = pathlib.Path(os.environ.get('MILLRACE_RELAY', BUILD / 'millrace'))
LONG = bool(os.environ.get('MILLRACE_TEST_LONG'))
# A slow relay gets one message for so many of a fast one's.
SLOWER = int(os.environ.get('MILLRACE_TEST_SLOWER', 1))
SCRATCH = pathlib.Path(tempfile.mkdtemp(prefix='millrace-system-', dir='/var/tmp'))

sys.path.insert(0, str(ROOT))
from bench.harness import programs as _programs  # noqa: E402

load_report = _programs.load
Sink = _programs.Sink
wait_for_greeting = _programs.wait_for_greeting

_running = []


def skip(reason):
    print(reason)
    sys.exit(77)


def need(*names):
    """Skips the test unless these programs are there."""
    for name in names:
        built = RELAY if name == 'millrace' else BUILD / name
        if not built.exists() and not find(name):
            skip(f'{name} is not there')


def find(name):
    return shutil.which(name, path='/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin')


def isolate():
    """Moves this process and its children into a network namespace with loopback only."""
    if os.geteuid() != 0:
        skip('needs root, for a network namespace')
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what daemons leave behind becomes ours (see end_orphans)
    if libc.unshare(0x40000000) != 0:  # CLONE_NEWNET
        skip(f'no network namespace: {os.strerror(ctypes.get_errno())}')
    if subprocess.run([find('ip'), 'link', 'set', 'lo', 'up']).returncode != 0:
        skip('loopback cannot be brought up')


def spawn(command, name, **options):
    log = open(SCRATCH / f'{name}.log', 'ab')
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log,
                               stderr=subprocess.STDOUT, start_new_session=True, **options)
    _running.append(process)
    return process


def log_of(name):
    return (SCRATCH / f'{name}.log').read_text(errors='replace')


def end(process, how=signal.SIGTERM, patience=60):
    """Ends a process of ours; returns its exit code."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f'{process.args[0]} did not end within {patience} s') from None
    return process.returncode


def eventually(condition, seconds=20, what=None):
    """Until it holds. The time is there for what hangs; a machine that is slow gets four times as long."""
    deadline = time.monotonic() + 4 * seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f'not within {4 * seconds} s: {what or condition}')


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def equal(found, wanted, what):
    if found != wanted:
        raise AssertionError(f'{what}: {found!r}, not {wanted!r}')


class Relay:
    """A millrace with a spool of its own."""

    def __init__(self, *options, port=2500, name='relay', prefix=()):
        """`prefix`: a command that starts it, such as prlimit."""
        self.options, self.port, self.name, self.prefix = options, port, name, prefix
        self.spool = SCRATCH / f'{name}-spool'
        self.events_file = SCRATCH / f'{name}-events'
        self.process = None

    def launch(self, *more):
        """Begins, and waits for nothing."""
        self.spool.mkdir(exist_ok=True)
        self.process = spawn(
            [*self.prefix, RELAY, '--listen', f'127.0.0.1:{self.port}', '--spool', self.spool,
             '--hostname', 'relay.test.invalid', '--events', self.events_file, *self.options, *more],
            self.name)

    def start(self, *more):
        self.launch(*more)
        try:
            wait_for_greeting(self.port, 120, lambda: self.process.poll() is None)
        except Exception as problem:
            raise AssertionError(f'{problem}\n{log_of(self.name)[-2000:]}') from None
        return self

    def stop(self):
        equal(end(self.process, patience=60), 0, 'exit code after SIGTERM')

    def kill(self):
        self.process.kill()
        self.process.wait()

    def events(self, kind=None):
        if not self.events_file.exists():
            return []
        # The last line may be in the middle of being written.
        lines = self.events_file.read_text().split('\n')[:-1]
        found = [json.loads(line) for line in lines]
        return [e for e in found if kind is None or e['type'] == kind]


def sink(*options, listen=('127.0.0.1:2600',)):
    made = Sink(BUILD, *map(str, options), listen=listen)
    _running.append(made.process)
    return made


def load(*options, port=2500, seconds=480):
    """Runs the load generator to its end; fails unless it exits 0."""
    report = load_report(BUILD, port, *options, seconds=seconds)
    equal(report['exit_code'], 0, f'exit code of millrace-load ({report})')
    return report


def start_load(*options, port=2500):
    """The load generator in the background; finish with finish_load()."""
    process = subprocess.Popen([str(w) for w in (BUILD / 'millrace-load', '--json', '--quiet', '--connect',
                                                 f'127.0.0.1:{port}', *options)],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    _running.append(process)
    return process


def finish_load(process, seconds=480):
    output = process.communicate(timeout=seconds)[0]
    report = json.loads(output)
    report['exit_code'] = process.returncode
    return report


def certificate(name, host, *others):
    """Chain and key of a new certificate for this host; `others`: more subjectAltNames, as openssl takes them."""
    os.chmod(SCRATCH, 0o755)
    chain, key = SCRATCH / f'{name}.pem', SCRATCH / f'{name}.key'
    subprocess.run([find('openssl'), 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes',
                    '-days', '30', '-subj', f'/CN={host}', '-addext', 'subjectAltName=' + ','.join((f'DNS:{host}', *others)), '-keyout', key,
                    '-out', chain], check=True, capture_output=True)
    return chain, key


def certificate_flags(pair):
    return ['--tls-certificate', pair[0], '--tls-key', pair[1]]


class NameServer(str):
    """NSD. As a string, its address for --dns-server."""

    def start(self):
        self.process = spawn(self.command, 'nsd')

        def answers():
            if self.process.poll() is not None:
                raise AssertionError('nsd ended: ' + log_of('nsd')[-1000:])
            return b':%04X' % self.port in pathlib.Path('/proc/net/udp').read_bytes()
        eventually(answers, 20, 'nsd listens')
        time.sleep(0.2)


def sign_zone(folder, name, spoil=None):
    """Signs the zone's file (ldns); `spoil` may alter what was signed. Returns its trust anchor."""
    key = subprocess.run([find('ldns-keygen'), '-a', 'ECDSAP256SHA256', '-k', name], cwd=folder, check=True, capture_output=True,
                         text=True).stdout.strip()
    subprocess.run([find('ldns-signzone'), '-f', name + '.signed', name, key], cwd=folder, check=True, capture_output=True)
    if spoil:
        text = (folder / (name + '.signed')).read_text()
        altered = spoil(text)
        check(altered != text, 'the spoiled zone is another')
        (folder / (name + '.signed')).write_text(altered)
    os.replace(folder / (name + '.signed'), folder / name)
    return (folder / (key + '.key')).read_text()


def validating_resolver(server, anchors, zones):
    """Unbound on 127.0.0.1:53: asks `server` about the zones, and checks what an anchor is for."""
    unbound = find('unbound') or skip('unbound is not installed')
    folder = SCRATCH / 'unbound'
    folder.mkdir()
    for number, anchor in enumerate(anchors):
        (folder / f'anchor-{number}').write_text(anchor)
    stubs = ''.join(f'stub-zone:\n  name: "{name}"\n  stub-addr: {str(server).replace(":", "@")}\n' for name in zones)
    (folder / 'unbound.conf').write_text(
        f'server:\n  interface: 127.0.0.1@53\n  username: ""\n  chroot: ""\n  directory: "{folder}"\n  pidfile: ""\n'
        '  use-syslog: no\n  do-daemonize: no\n  do-not-query-localhost: no\n  num-threads: 1\n  cache-max-ttl: 1\n'
        '  cache-max-negative-ttl: 1\n  val-bogus-ttl: 1\n  do-ip6: no\n  local-zone: "test." transparent\n  module-config: "validator iterator"\n'
        + ''.join(f'  trust-anchor-file: "{folder}/anchor-{number}"\n' for number in range(len(anchors)))
        + f'remote-control:\n  control-enable: no\n{stubs}')
    process = spawn([unbound, '-d', '-p', '-c', folder / 'unbound.conf'], 'unbound')

    def answers():
        if process.poll() is not None:
            raise AssertionError('unbound ended: ' + log_of('unbound')[-1000:])
        return b':0035' in pathlib.Path('/proc/net/udp').read_bytes()
    eventually(answers, 20, 'unbound listens')
    return '127.0.0.1:53'


def dns(zones, port=5300, prepare=None):
    """A name server with these zones, {name: text}. `prepare(folder)` may change their files first."""
    nsd = find('nsd') or skip('nsd is not installed')
    folder = SCRATCH / 'nsd'
    folder.mkdir()
    config = [f'server:\n  ip-address: 127.0.0.1@{port}\n  username: ""\n  chroot: ""\n'
              f'  zonesdir: "{folder}"\n  database: ""\n  pidfile: "{folder}/pid"\n'
              f'  xfrdfile: "{folder}/xfrd"\n  xfrdir: "{folder}"\n  zonelistfile: "{folder}/zones"\n'
              f'  server-count: 1\n  rrl-ratelimit: 0\nremote-control:\n  control-enable: no\n']
    for name, text in zones.items():
        (folder / name).write_text(f'$ORIGIN {name}.\n$TTL 60\n'
                                   f'@ SOA ns.{name}. root.{name}. 1 60 60 600 60\n@ NS ns.{name}.\n'
                                   f'ns A 127.0.0.1\n{text}\n')
        config.append(f'zone:\n  name: "{name}"\n  zonefile: "{name}"\n')
    if prepare:
        prepare(folder)
    (folder / 'nsd.conf').write_text(''.join(config))
    server = NameServer(f'127.0.0.1:{port}')
    server.port, server.command = port, [nsd, '-d', '-c', folder / 'nsd.conf']
    server.start()
    return server


def end_orphans():
    """Ends what programs have left behind, such as Postfix's own daemons."""
    for _ in range(100):
        left = []
        for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
            try:
                if int(path.read_text().rpartition(')')[2].split()[1]) == os.getpid():
                    left.append(int(path.parent.name))
            except OSError:
                pass  # it has ended meanwhile
        if not left:
            return
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run(test):
    """Runs the test and takes everything down, in success and in failure."""
    try:
        test()
        print('ok')
    except Exception as problem:
        for log in sorted(SCRATCH.rglob('*.log')):
            print(f'--- {log.relative_to(SCRATCH)}\n' + '\n'.join(log.read_text(errors='replace').splitlines()[-100:]))
        if not isinstance(problem, AssertionError):
            traceback.print_exc(file=sys.stdout)
        print(f'FAILED: {problem}')
        sys.exit(1)
    finally:
        for process in _running:
            if process.poll() is None:
                process.kill()
                process.wait()
        end_orphans()
        shutil.rmtree(SCRATCH, ignore_errors=True)
