#!/usr/bin/env python3
"""Crowds of idle and of very slow clients, floods of connections and recipients, messages far over the limit, and
no descriptors left: honest senders are served meanwhile, memory stays bounded, nothing accepted is lost.

What a machine's descriptors do not allow is scaled down, and the line that the test prints says to what."""
import errno
import pathlib
import resource
import select
import socket
import threading
import time

from harness import (SCRATCH, SLOWER, Relay, check, equal, eventually, find, isolate, load, log_of, need, run, sink)

IDLE, SLOW = 20_000, 5_000
RELAY = '--smarthost', '127.0.0.1:2600', '--connect-rate', '1000/s', '--total-connections', '100'
MEMORY_MIB = 512


def peak_memory_mib(process):
    status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) // 1024


class Crowd:
    """Clients that hold connections open, from as many addresses as needed; some send an octet a second."""

    def __init__(self, port, size, slow, from_one_address=False):
        self.greeted = self.refused = self.lost = 0
        self.answered = set()  # those that were greeted, refused or closed
        self.poll = select.epoll()
        self.sockets = {}
        for n in range(size):
            client = socket.socket()
            client.setblocking(False)
            # 900 a client address: fewer than --max-connections-per-client.
            client.bind(('127.0.9.1' if from_one_address else f'127.0.10.{1 + n // 900}', 0))
            try:
                client.connect(('127.0.0.1', port))
            except BlockingIOError:
                pass
            self.sockets[client.fileno()] = client
            self.poll.register(client, select.EPOLLIN)
            if n % 200 == 199:
                self.look()
        self.slow = list(self.sockets.values())[:slow]
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.live)
        self.thread.start()

    def look(self):
        for number, _ in self.poll.poll(0):
            try:
                said = self.sockets[number].recv(4096)
            except OSError:
                said = b''
            self.answered.add(number)
            if said.startswith(b'220'):
                self.greeted += 1
            elif said.startswith(b'421'):
                self.refused += 1
            if not said:
                self.lost += 1
                self.poll.unregister(number)

    def live(self):
        text = b'NOOP ' + b'x' * 400
        for second in range(10_000):
            for client in self.slow:
                try:
                    client.send(text[second % len(text):][:1])
                except OSError:
                    pass
            until = time.monotonic() + 1
            while time.monotonic() < until:
                self.look()
                if self.stopping.wait(0.05):
                    return

    def leave(self):
        self.stopping.set()
        self.thread.join()
        for client in self.sockets.values():
            client.close()


HONEST = 4000 // SLOWER


def honest(ledger):
    return load('--messages', HONEST, '--connections', 20, '--size', 5000, '--ledger', ledger)


def served_among_idle_and_slow_clients(relay, ledger):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    scale = min(1, (limit - 1500) / (IDLE + SLOW))
    idle, slow = int(IDLE * scale), int(SLOW * scale)
    crowd = Crowd(relay.port, idle + slow, slow)
    try:
        eventually(lambda: len(crowd.answered) == idle + slow, 60,
                   'the crowd is greeted')
        equal((crowd.refused, crowd.lost), (0, 0), 'of the crowd refused and lost')
        report = honest(ledger)
        equal(crowd.lost, 0, 'of the crowd lost')
        peak = peak_memory_mib(relay.process)
        print(f'{idle} idle and {slow} slow clients (of {IDLE} and {SLOW}; {limit} descriptors): {peak} MiB at most; '
              f'p99 of an honest 250 {report["latency_ms"]["p99"]} ms')
        check(peak <= MEMORY_MIB, f'{peak} MiB')
    finally:
        crowd.leave()


def a_flood_from_one_address_keeps_nobody_out(relay, ledger):
    crowd = Crowd(relay.port, 3000, 0, from_one_address=True)
    try:
        eventually(lambda: len(crowd.answered) == 3000, 60, 'the flood is answered')
        equal(crowd.greeted, 1000, 'let in from one address')
        honest(ledger)
    finally:
        crowd.leave()


def talk(port, *lines):
    client = socket.create_connection(('127.0.0.1', port), 30)
    said = client.recv(4096)
    for line in lines:
        client.sendall(line)
        said += client.recv(65536)
    return client, said


def a_flood_of_recipients_is_bounded(relay):
    client, _ = talk(relay.port, b'EHLO flood.test\r\n', b'MAIL FROM:<a@flood.test>\r\n')
    accepted = told = 0
    rest = b''
    try:
        for group in range(1000):
            client.sendall(b''.join(b'RCPT TO:<r%d@flood.test>\r\n' % (group * 100 + n) for n in range(100)))
            while rest.count(b'\n') < 100:
                piece = client.recv(65536)
                if not piece:
                    raise ConnectionResetError
                rest += piece
            for line in rest.split(b'\r\n')[:-1]:
                accepted += line.startswith(b'250')
                told += line.startswith(b'4')
            rest = b''
    except OSError:
        pass  # it may end the session
    equal(accepted, 1000, 'recipients accepted of 100,000')
    check(told > 0, 'the rest is told to come later')
    client.close()


def messages_over_the_limit_cost_no_memory(relay, ledger):
    """Four clients send 1 GB each, which the relay was not told before, against a limit of 10 MB."""
    replies = []

    def send():
        client, said = talk(relay.port, b'EHLO big.test\r\n', b'MAIL FROM:<a@big.test>\r\n',
                            b'RCPT TO:<b@big.test>\r\n', b'DATA\r\n')
        check(b'354' in said, f'{said}')
        line = (b'x' * 76 + b'\r\n') * 8000
        try:
            for _ in range(10**9 // len(line)):
                client.sendall(line)
            client.sendall(b'.\r\n')
            replies.append(client.recv(4096)[:3])
        except OSError as problem:
            # Cut off: it may answer 552 before it closes, or the reset comes first.
            check(problem.errno in (errno.EPIPE, errno.ECONNRESET), f'{problem}')
            replies.append(b'cut')
        client.close()
    threads = [threading.Thread(target=send) for _ in range(4)]
    before = peak_memory_mib(relay.process)
    for thread in threads:
        thread.start()
    honest(ledger)
    for thread in threads:
        thread.join()
    check(len(replies) == 4 and set(replies) <= {b'552', b'cut'}, f'replies {replies}')
    peak = peak_memory_mib(relay.process)
    print(f'4 messages of 1 GB: {set(replies)}, {before} MiB before, {peak} MiB at most')
    check(peak <= MEMORY_MIB, f'{peak} MiB')
    client, said = talk(relay.port, b'EHLO big.test\r\n', b'MAIL FROM:<a@big.test> SIZE=1000000000\r\n')
    check(b'552 5.3.4' in said, f'SIZE told before: {said}')
    client.close()


def few_descriptors_are_shared(ledger):
    """A relay that may open 2,500 descriptors has 1,500 of them for connections, and says so. A crowd takes its part of
    them; what was accepted before is delivered meanwhile, and once the crowd has left mail is accepted again."""
    few = 2500
    relay = Relay(*RELAY[:-2], '--max-connections', '9000', '--total-connections', '1000', port=2501, name='few-descriptors',
                  prefix=(find('prlimit'), f'--nofile={few}:{few}'))
    relay.start()
    check('descriptors: 2500, of which 1350 for inbound and 150 for outbound' in log_of(relay.name), log_of(relay.name))
    crowd = Crowd(relay.port, 2000, 0)
    try:
        eventually(lambda: len(crowd.answered) == 2000, 60, 'the crowd is answered')
        # The connection that waited for the greeting may still count.
        check(crowd.greeted in (1349, 1350), f'{crowd.greeted} of the crowd are let in')
        check('Too many open files' not in log_of(relay.name), log_of(relay.name))
    finally:
        crowd.leave()
    load('--messages', HONEST, '--connections', 10, '--size', 5000, '--ledger', ledger, port=relay.port)
    eventually(lambda: len(relay.events('delivered')) == HONEST, 60, 'mail flows again')
    relay.stop()


def test():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    ledgers = [SCRATCH / f'ledger-{n}' for n in range(4)]
    receiver = sink(*(word for ledger in ledgers for word in ('--ledger', ledger)))
    relay = Relay(*RELAY, '--memory', '400M', '--max-message-size', '10M', '--max-connections', '30000').start()
    served_among_idle_and_slow_clients(relay, ledgers[0])
    a_flood_from_one_address_keeps_nobody_out(relay, ledgers[1])
    a_flood_of_recipients_is_bounded(relay)
    messages_over_the_limit_cost_no_memory(relay, ledgers[2])
    eventually(lambda: len(relay.events('delivered')) == 3 * HONEST, 60, 'all honest mail is delivered')
    relay.stop()
    few_descriptors_are_shared(ledgers[3])
    verdict = receiver.finish()['ledger']
    equal([verdict[fault] for fault in ('missing', 'altered', 'duplicates')], [0, 0, 0], str(verdict))


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink')
    isolate()
    run(test)
