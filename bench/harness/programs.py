"""The source and the sink of a run: millrace-load and millrace-sink."""
import json
import pathlib
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import time

from . import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Broken(Exception):
    """A run that cannot go on; the text says why."""


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class Certificate:
    """An ECDSA P-256 one of its own, for all who take part; and the suite that they speak."""
    suite = 'TLS_AES_128_GCM_SHA256'

    def __init__(self, directory):
        self.chain, self.key, self.both = (pathlib.Path(directory) / name for name in ('chain.pem', 'key.pem', 'both.pem'))
        openssl = shutil.which('openssl')
        if not openssl:
            raise Broken('openssl is not installed')
        subprocess.run([openssl, 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30',
                        '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-keyout', self.key, '-out', self.chain],
                       check=True, capture_output=True)
        self.both.write_text(self.key.read_text() + self.chain.read_text())
        for file in (self.chain, self.key, self.both):
            file.chmod(0o644)


def wait_for_greeting(port, seconds, alive, host='127.0.0.1', tls=None):
    """Until a server on this port says 220."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not alive():
            raise Broken('it ended before it listened')
        try:
            with socket.create_connection((host, port), 1) as plain:
                plain.settimeout(5)
                connection = context.wrap_socket(plain) if tls else plain
                if connection.recv(512).startswith(b'220'):
                    connection.sendall(b'QUIT\r\n')
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise Broken(f'no greeting on port {port} within {seconds} s')


class Sink:
    """A running millrace-sink on a port of its own choice."""

    def __init__(self, build, *options, listen=('127.0.0.1:0',)):
        command = [str(build / 'millrace-sink'), '--json']
        for address in listen:
            command += ['--listen', address]
        self.process = subprocess.Popen(command + list(options), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                        bufsize=1, start_new_session=True)
        line = self._line(10)
        found = re.match(r'listening on .*:(\d+)$', line or '')
        if not found:
            self.kill()
            raise Broken(f'the sink did not start: {line}')
        self.port = int(found.group(1))

    def _line(self, seconds):
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return None
        return self.process.stdout.readline().rstrip('\n')

    def status(self):
        self.process.send_signal(signal.SIGUSR1)
        while True:
            line = self._line(5)
            if line is None or line == '':
                raise Broken('the sink does not answer')
            if line.startswith('status '):
                return json.loads(line.removeprefix('status '))

    def wait_for(self, recipients, patience):
        """Until so many recipients were accepted or refused for good. False: nothing of the kind
        happened for `patience` seconds."""
        best, since = -1, time.monotonic()
        while True:
            status = self.status()
            now = status['recipients'] + status.get('bounced', 0)
            if now >= recipients:
                return True
            if now > best:
                best, since = now, time.monotonic()
            elif time.monotonic() - since > patience:
                return False
            time.sleep(0.05)

    def finish(self):
        """Ends it and returns its report."""
        self.process.terminate()
        output = self.process.communicate(timeout=60)[0]
        return json.loads(output[output.index('{\n'):])

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class NameServer:
    """NSD in the foreground with one zone, on a port of its own."""

    def __init__(self, directory, zone, records):
        nsd = shutil.which('nsd', path='/usr/sbin:/usr/bin')
        if not nsd:
            raise Broken('nsd is not installed')
        self.port = free_port()
        folder = pathlib.Path(directory) / 'nsd'
        folder.mkdir()
        (folder / 'zone').write_text(f'$ORIGIN {zone}.\n$TTL 3600\n@ SOA ns.{zone}. root.{zone}. 1 3600 3600 '
                                     f'3600 3600\n@ NS ns.{zone}.\nns A 127.0.0.1\n' + records)
        (folder / 'nsd.conf').write_text(f'''
server:
  ip-address: 127.0.0.1@{self.port}
  username: ""
  chroot: ""
  zonesdir: "{folder}"
  database: ""
  pidfile: "{folder}/pid"
  xfrdfile: "{folder}/xfrd"
  xfrdir: "{folder}"
  zonelistfile: "{folder}/zones"
  server-count: 1
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: "{zone}"
  zonefile: "zone"
''')
        self.log = open(folder / 'log', 'wb')
        self.tree = machine.Tree('nsd')
        self.tree.start([nsd, '-d', '-c', str(folder / 'nsd.conf')], self.log)
        deadline = time.monotonic() + 60
        while not self._answers(f'ns.{zone}'):
            if self.tree.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Broken('nsd did not start: ' + machine.read(folder / 'log')[-500:])
            time.sleep(0.1)

    def _answers(self, name):
        query = bytes([0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + b''.join(
            bytes([len(label)]) + label.encode() for label in name.split('.')) + b'\0\0\1\0\1'
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(0.5)
            asking.connect(('127.0.0.1', self.port))
            try:
                asking.send(query)
                return asking.recv(512)[3] & 15 == 0
            except OSError:
                return False

    def stop(self):
        self.tree.stop()
        self.log.close()


def load(build, port, *options, seconds=600, host='127.0.0.1'):
    """Runs millrace-load to its end and returns its report."""
    command = [str(build / 'millrace-load'), '--json', '--quiet', '--connect', f'{host}:{port}',
               *map(str, options)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    if not output.strip():
        raise Broken(f'millrace-load: exit code {process.returncode}: {errors.strip()[-300:]}')
    report = json.loads(output)
    report['exit_code'] = process.returncode
    return report
