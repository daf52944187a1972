#!/usr/bin/env python3
"""Memory that cannot be had, at any allocation: the relay says so and ends, or goes on without; the next start loses
nothing that was acknowledged. One spool for all of it: each start recovers what the one before left, and dies in
turn, while starting, recovering, taking mail (in the clear and under TLS), delivering or stopping.

Every so-manyth allocation, half of them before the first client is greeted and half from then on to the end of a few
messages and a stop; more of them under `--long`. `new` by the relay itself, malloc() by the C libraries it uses; once,
and from then on."""
import re
import signal
import socket
import ssl
import struct
import threading
import time

from harness import (BUILD, LONG, SCRATCH, Relay, certificate, certificate_flags, check, equal, eventually, isolate, log_of, need, run,
                     skip)

SHIM = BUILD / 'tests/system/fail_allocation.so'
ROUNDS = 2000 if LONG else 30             # of each kind, and once or from then on
MESSAGES = 3                               # a connection
PATIENCE = 20                              # seconds


class Receiver:
    """Takes everything; remembers which numbers came."""

    def __init__(self, port):
        self.seen, self.altered = {}, []
        self.server = socket.create_server(('127.0.0.1', port), backlog=50)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            threading.Thread(target=self.talk, args=(self.server.accept()[0],), daemon=True).start()

    def talk(self, connection):
        try:
            with connection, connection.makefile('rb') as lines:
                connection.sendall(b'220 sink.test\r\n')
                for line in lines:
                    verb = line[:4].upper()
                    if verb == b'DATA':
                        connection.sendall(b'354 go\r\n')
                        content = []
                        for line in lines:
                            if line == b'.\r\n':
                                self.take(b''.join(content))
                                break
                            content.append(line)
                    connection.sendall(b'221 bye\r\n' if verb == b'QUIT' else b'250 ok\r\n')
                    if verb == b'QUIT':
                        return
        except OSError:
            pass

    def take(self, content):
        found = re.search(rb'\r\nSubject: number (\d+)\r\n\r\n', b'\r\n' + content)
        number = int(found[1]) if found else -1
        if not content.endswith(body(number)):
            self.altered.append(content)
        self.seen[number] = self.seen.get(number, 0) + 1


def body(number):
    return b'Subject: number %d\r\n\r\n' % number + b'%d is what it says\r\n' % number * (1 + number % 500)


def send(numbers, tls, accepted):
    """One connection's messages; notes each that was answered with 250. Whatever goes wrong ends it."""
    try:
        connection = socket.create_connection(('127.0.0.1', 2500), timeout=PATIENCE)
        lines = connection.makefile('rb')

        def say(text):
            connection.sendall(text)
            while True:
                line = lines.readline()
                if not line:
                    raise ConnectionError
                if line[3:4] != b'-':
                    return line[:3]
        say(b'')
        say(b'EHLO client.test\r\n')
        if tls and say(b'STARTTLS\r\n') == b'220':
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = context.wrap_socket(connection)
            lines = connection.makefile('rb')
            say(b'EHLO client.test\r\n')
        for number in numbers:
            say(b'MAIL FROM:<a@sender.test>\r\n')
            say(b'RCPT TO:<b@receiver.test>\r\n')
            if say(b'DATA\r\n') == b'354' and say(body(number) + b'.\r\n') == b'250':
                accepted.add(number)
        say(b'QUIT\r\n')
    except (OSError, ssl.SSLError):
        pass


class Rounds:
    def __init__(self, receiver, pair):
        self.receiver, self.accepted, self.next_number = receiver, set(), 1
        self.counts = SCRATCH / 'allocations'
        self.relay = Relay('--smarthost', '127.0.0.1:2600', '--retry', '1s', '--retry-uncertain', '1s', '--hold', '1s',
                           '--shards', 1, '--memory', '64M', '--segment-size', '1M', '--spool-reserve', '2M',
                           '--max-message-size', '200000', *certificate_flags(pair))
        self.ended, self.went_on = 0, 0

    def one(self, **fault):
        """Starts, works, stops, with this fault; says how the process ended and what it allocated."""
        log_before = len(log_of('relay')) if (SCRATCH / 'relay.log').exists() else 0
        self.counts.unlink(missing_ok=True)
        self.relay.prefix = ['env', f'LD_PRELOAD={SHIM}', f'MILLRACE_ALLOCATIONS={self.counts}',
                             *(f'MILLRACE_FAIL_{name.upper()}={value}' for name, value in fault.items())]
        self.relay.launch()
        process = self.relay.process
        deadline = time.monotonic() + 60
        while process.poll() is None:
            check(time.monotonic() < deadline, f'{fault}: it neither answers nor ends')
            # A greeting: the listener of the process before may outlive it by a moment.
            try:
                with socket.create_connection(('127.0.0.1', 2500), timeout=1) as connection:
                    if connection.recv(3) == b'220':
                        break
            except OSError:
                pass
            time.sleep(0.005)
        greeted = self.allocations()
        for tls in (False, True):
            if process.poll() is None:
                numbers = range(self.next_number, self.next_number + MESSAGES)
                self.next_number += MESSAGES
                send(numbers, tls, self.accepted)
        deadline = time.monotonic() + 0.5
        while process.poll() is None and not self.all_arrived() and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        log = (SCRATCH / 'relay.log').read_bytes()[log_before:].decode(errors='replace')
        if process.returncode == 0:
            self.went_on += 1
        else:
            # The C library ends the process itself where it has no error to return; a file of a flag that cannot be
            # read is an error of the configuration.
            wanted = -signal.SIGABRT if 'Fatal glibc error' in log else 2 if log.startswith('millrace: --') or '\nmillrace: --' in log else 1
            equal(process.returncode, wanted, f'{fault}: exit code; it said: {log[-2000:]}')
            check('memory' in log, f'{fault}: it does not name its end: {log[-2000:]}')
            self.ended += 1
        return greeted, self.allocations()

    def allocations(self):
        """How often the relay has called new and malloc() so far."""
        return struct.unpack('QQ', self.counts.read_bytes()) if self.counts.exists() else (0, 0)

    def all_arrived(self):
        return self.accepted <= self.receiver.seen.keys()

    def series(self, kind, **more):
        """The fault at every so-manyth allocation of a round."""
        which = ('new', 'malloc').index(kind)
        greeted, total = (counts[which] for counts in self.one())
        first, then = (max(1, 2 * part // ROUNDS) for part in (greeted, total - greeted))
        chosen = [*range(1, greeted, first), *range(greeted, total, then)]
        self.ended = self.went_on = 0
        for nth in chosen:
            self.one(**{kind: nth}, **more)
        print(f'{kind}{" from then on" if more else ""}: {len(chosen)} of {total} allocations, {greeted} of them before '
              f'it greets: {self.ended} times it ended, {self.went_on} times it went on', flush=True)
        if kind == 'new':
            check(self.ended >= len(chosen) / 2, f'only {self.ended} of {len(chosen)} failures of new ended it')


def test():
    receiver = Receiver(2600)
    rounds = Rounds(receiver, certificate('relay', 'relay.test.invalid'))
    for kind in ('new', 'malloc'):
        rounds.series(kind)
        rounds.series(kind, from_then_on=1)
    # Everything that was ever acknowledged.
    rounds.relay.prefix = ()
    rounds.relay.start()
    eventually(rounds.all_arrived, 60, f'all {len(rounds.accepted)} arrive: '
               f'{sorted(rounds.accepted - receiver.seen.keys())[:20]} are missing')
    rounds.relay.stop()
    equal(receiver.altered, [], 'altered')
    print(f'{len(rounds.accepted)} acknowledged, all arrived; '
          f'{sum(count - 1 for count in receiver.seen.values())} once more than needed')


if __name__ == '__main__':
    need('millrace')
    if not SHIM.exists():
        skip('tests/system/fail_allocation.so is not built')
    isolate()
    run(test)
