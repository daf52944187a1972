#!/usr/bin/env python3
"""The load generator's ledger and the simulator's verdict agree, and the verdict can be bad.

A small proxy between the two loses, repeats or alters a message; the simulator must say so.
"""
import os
import socket
import threading

from harness import (SCRATCH, check, equal, isolate, load, load_report, need, run, sink, BUILD)


def plain():
    """Every way of sending arrives whole."""
    for number, options in enumerate((
            ['--leading-dots', 0.3, '--size', 'uniform:1-60000'],
            ['--bdat', '--recipients', 5, '--size', 'lognormal:8000'],
            ['--pipelining', 'off', '--reuse', 1],
            ['--pipelining', 'off', '--bdat', '--recipients', 2],
            ['--bdat', '--reuse', 3, '--rate', 2000])):
        ledger = SCRATCH / f'ledger-{number}'
        receiver = sink('--ledger', ledger)
        report = load('--messages', 1000, '--connections', 10, '--ledger', ledger, *options, port=2600)
        result = receiver.finish()
        equal(report['accepted'], 1000, f'accepted with {options}')
        verdict = result['ledger']
        equal(verdict['delivered'], verdict['recipients'], f'delivered with {options}')
        for fault in ('missing', 'duplicates', 'altered', 'unknown', 'without_id'):
            equal(verdict[fault], 0, f'{fault} with {options}')
        equal(result['mistakes'], {}, f'mistakes with {options}')


def faults():
    """What the simulator does to the client is survived, and counted."""
    ledger = SCRATCH / 'ledger-faults'
    receiver = sink('--ledger', ledger, '--drop', 'after-dot:0.02', '--drop', 'reset:0.02',
                    '--messages-per-connection', 7, '--odds', '*=4xx:0.1', '--odds-at', 'data')
    report = load('--messages', 2000, '--connections', 10, '--ledger', ledger, '--retry-refused',
                  port=2600)
    result = receiver.finish()
    check(report['sent_again'] > 0 and result['dropped'] > 0, 'connections were dropped')
    equal(result['ledger']['delivered'], 2000, 'delivered')
    equal(result['ledger']['duplicates'], 0, 'duplicates')
    check(result['most_messages_on_a_connection'] <= 7, 'messages on a connection')


class Proxy:
    """Speaks SMTP to the load generator itself and passes messages on, but for the fault."""

    def __init__(self, fault):
        self.fault = fault
        self.listener = socket.create_server(('127.0.0.1', 2700))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        client, _ = self.listener.accept()
        lines = client.makefile('rb')
        client.sendall(b'220 proxy\r\n')
        number = 0
        envelope = []
        for line in lines:
            verb = line[:4].upper()
            if verb in (b'MAIL', b'RCPT'):
                envelope.append(line)
            if verb != b'DATA':
                client.sendall(b'250 Ok\r\n')
                if verb == b'QUIT':
                    return
                continue
            client.sendall(b'354 Go\r\n')
            content = []
            for piece in lines:
                if piece == b'.\r\n':
                    break
                content.append(piece)
            number += 1
            if not (self.fault == 'missing' and number == 5):
                self.pass_on(envelope, content, number)
            if self.fault == 'duplicates' and number == 5:
                self.pass_on(envelope, content, number)
            envelope = []
            client.sendall(b'250 Ok: queued as 1\r\n')

    def pass_on(self, envelope, content, number):
        if self.fault == 'altered' and number == 5:
            content = content[:-1] + [b'#' + content[-1][1:]]
        server = socket.create_connection(('127.0.0.1', 2600))
        replies = server.makefile('rb')

        def say(data):
            server.sendall(data)
            return replies.readline()
        replies.readline()
        server.sendall(b'HELO proxy\r\n')
        replies.readline()
        for line in envelope:
            say(line)
        say(b'DATA\r\n')
        # Headers in front, as a relay adds them, change nothing.
        say(b'Received: by proxy\r\n' + b''.join(content) + b'.\r\n')
        say(b'QUIT\r\n')


def verdicts():
    for fault in ('none', 'missing', 'duplicates', 'altered'):
        ledger = SCRATCH / f'ledger-{fault}'
        receiver = sink('--ledger', ledger)
        proxy = Proxy(fault)
        report = load_report(BUILD, 2700, '--messages', 20, '--connections', 1, '--pipelining', 'off',
                             '--ledger', ledger, '--leading-dots', 0.2)
        equal(report['accepted'], 20, f'accepted ({fault})')
        proxy.listener.close()
        result = receiver.finish()['ledger']
        for kind in ('missing', 'duplicates', 'altered'):
            equal(result[kind], 1 if kind == fault else 0, f'{kind} when the fault is {fault}')
        equal(receiver.process.returncode, 0 if fault == 'none' else 1, f'exit code ({fault})')


def test():
    plain()
    faults()
    verdicts()


if __name__ == '__main__':
    need('millrace-load', 'millrace-sink')
    isolate()
    os.chdir('/')
    run(test)
