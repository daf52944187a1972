#!/usr/bin/env python3
"""SIGTERM while receivers are silent, before their greeting and in the TLS handshake: there is no transaction to wait
for, so the relay ends although it was given an hour, and what it could not deliver is delivered by the next."""
import contextlib
import smtplib
import socket

from harness import Relay, equal, eventually, isolate, need, run, sink

MUTE, STALLS = 2601, 2602
ROUTES = ('--route', f'mute.invalid=127.0.0.1:{MUTE}', '--route', f'stalls.invalid=127.0.0.1:{STALLS}')


def listen(port):
    return contextlib.closing(socket.create_server(('127.0.0.1', port)))


def talk_until_tls(server):
    """The connection, whose ClientHello has come and will not be answered."""
    connection, _ = server.accept()
    connection.settimeout(60)
    for say, expect in (('220 stalls.invalid ESMTP', b'EHLO'), ('250-stalls.invalid\r\n250 STARTTLS', b'STARTTLS'),
                        ('220 2.0.0 go ahead', b'\x16')):
        connection.sendall(f'{say}\r\n'.encode())
        heard = connection.recv(4096)
        equal(heard[:len(expect)], expect, f'after {say}')
    return connection


def test():
    relay = Relay('--drain-timeout', '1h', '--hold', '1s', *ROUTES).start()
    with listen(MUTE) as mute, listen(STALLS) as stalls:
        with smtplib.SMTP('127.0.0.1', relay.port) as client:
            for domain in ('mute.invalid', 'stalls.invalid'):
                client.sendmail('from@sender.invalid', [f'to@{domain}'], 'Subject: x\r\n\r\nhello\r\n')
        with contextlib.closing(mute.accept()[0]), contextlib.closing(talk_until_tls(stalls)):
            relay.stop()
    equal(relay.events('delivered'), [], 'delivered by silent receivers')
    receivers = [sink(listen=(f'127.0.0.1:{port}',)) for port in (MUTE, STALLS)]
    relay.start()
    eventually(lambda: len(relay.events('delivered')) == 2, 30, 'delivered after the restart')
    relay.stop()
    for receiver in receivers:
        receiver.finish()


if __name__ == '__main__':
    need('millrace', 'millrace-sink')
    isolate()
    run(test)
