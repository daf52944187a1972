#!/usr/bin/env python3
"""TLS on both sides, with our own programs and with those of others (openssl s_client, swaks, Postfix and
Exim in front and behind), and a receiver that breaks TLS in the ways receivers do: what may go in the clear then, and what waits."""
import os
import subprocess

import peers
from harness import (BUILD, SCRATCH, SLOWER, Relay, certificate, certificate_flags, check, dns, equal, eventually, find, isolate, load,
                     need, run, sink)

MESSAGES = 2000 // SLOWER


def ours_on_both_sides(mine, theirs):
    for mode, hop in (('starttls', '127.0.0.1:2600'), ('implicit', 'smtps://127.0.0.1:2600')):
        ledger = SCRATCH / f'ledger-{mode}'
        receiver = sink('--tls', mode, *certificate_flags(theirs), '--ledger', ledger)
        relay = Relay('--listen-tls', '127.0.0.1:2501', *certificate_flags(mine), '--smarthost', hop, '--tls', 'required',
                      '--messages-per-connection', 50, name=f'relay-{mode}').start()
        report = load('--tls', mode, '--messages', MESSAGES, '--connections', 20, '--ledger', ledger, '--reuse', 40,
                      port=2500 if mode == 'starttls' else 2501)
        eventually(lambda: len(relay.events('delivered')) >= MESSAGES, 60, 'everything is delivered')
        for event in relay.events():
            if event['type'] in ('received', 'delivered'):
                equal(event.get('tls_version'), 'TLSv1.3', f'{mode}: TLS of {event}')
        equal(relay.events('delivered')[0]['tls_verified'], 'untrusted', 'the receiver is self-signed')
        relay.stop()
        result = receiver.finish()
        for fault in ('missing', 'altered', 'unknown', 'duplicates'):
            equal(result['ledger'][fault], 0, f'{mode}: {fault} ({result})')
        equal(result['mistakes'], {}, f'{mode}: mistakes')
        check(report['tls_resumed'] > 0, f'{mode}: the generator resumed sessions ({report})')
        check(result['tls_resumed'] > 0, f'{mode}: the relay resumed sessions ({result})')


def clients_of_others(mine):
    receiver = sink()
    relay = Relay('--listen-tls', '127.0.0.1:2501', *certificate_flags(mine), '--require-tls', '--smarthost', '127.0.0.1:2600',
                  name='relay-clients').start()
    dialogue = ('EHLO client.test\r\nMAIL FROM:<a@sender.test>\r\nRCPT TO:<b@receiver.test>\r\nDATA\r\n'
                'Subject: by hand\r\n\r\nhello\r\n.\r\nQUIT\r\n')
    sent = 0
    for version in ('-tls1_2', '-tls1_3'):
        begun = subprocess.run([find('openssl'), 's_client', version, '-starttls', 'smtp', '-connect', '127.0.0.1:2500'],
                               input='QUIT\r\n', capture_output=True, text=True, timeout=60)
        check('Cipher is' in begun.stdout and '(NONE)' not in begun.stdout, f'STARTTLS {version}: {begun.stdout}')
        client = subprocess.Popen([find('openssl'), 's_client', '-quiet', version, '-connect', '127.0.0.1:2501'],
                                  text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        heard = [client.stdout.readline()]
        for line in dialogue.split('\r\n')[:-1]:
            client.stdin.write(line + '\r\n')
            client.stdin.flush()
            while line not in ('Subject: by hand', '', 'hello'):
                heard.append(client.stdout.readline())
                if heard[-1][3:4] != '-':
                    break
        client.stdin.close()
        client.wait(20)
        codes = [line[:3] for line in heard[1:] if line[3:4] == ' ']
        equal(codes, ['250', '250', '250', '354', '250', '221'], f's_client {version}: {heard}')
        sent += 1
    for options in (['--server', '127.0.0.1:2500', '--tls'], ['--server', '127.0.0.1:2501', '--tls-on-connect']):
        subprocess.run([find('swaks'), *options, '--from', 'a@sender.test', '--to', 'b@receiver.test'], check=True,
                       capture_output=True, timeout=60)
        sent += 1
    # What may not be: mail in the clear, TLS 1.1.
    refused = subprocess.run([find('swaks'), '--server', '127.0.0.1:2500', '--from', 'a@sender.test', '--to',
                              'b@receiver.test'], capture_output=True, text=True, timeout=60)
    check('530 5.7.0' in refused.stdout, f'mail in the clear: {refused.stdout}')
    old = subprocess.run([find('openssl'), 's_client', '-tls1_1', '-cipher', 'ALL:@SECLEVEL=0', '-connect',
                          '127.0.0.1:2501'], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    check('alert protocol version' in old.stderr, f'TLS 1.1: {old.stderr}')
    eventually(lambda: len(relay.events('delivered')) == sent, 30, f'{sent} messages')
    relay.stop()
    receiver.finish()


def faults(theirs):
    for fault, arrives in (('refuse', True), ('stall', False), ('inject', False), ('reset', False), ('text', False)):
        receiver = sink('--tls', 'starttls', '--tls-fault', fault, *certificate_flags(theirs))
        relay = Relay('--smarthost', '127.0.0.1:2600', '--hold', '1s', '--drain-timeout', '1s',
                      name=f'relay-{fault}').start()
        load('--messages', 1, '--connections', 1)
        if arrives:
            event = eventually(lambda: relay.events('delivered'), 20, fault)[0]
            check(event['tls_reason'].startswith('454'), f'{fault}: the reason: {event}')
        elif fault != 'stall':  # which has its minute
            event = eventually(lambda: [e for e in relay.events('queue') if e.get('stage') == 'starttls'], 20, fault)[0]
            equal(event['stage'], 'starttls', f'{fault}: {event}')
        equal(len(relay.events('delivered')), 1 if arrives else 0, f'{fault}: delivered')
        relay.stop()
        equal(receiver.finish()['messages'], 1 if arrives else 0, f'{fault}: messages that arrived')


def forgotten_by_command(theirs):
    """A site that had TLS gets nothing in the clear until it is forgotten, also after a restart."""
    server = dns({'test': 'once MX 10 mx.once\nmx.once A 127.0.40.1\n'})
    at = ('127.0.40.1:25',)
    relay = Relay('--dns-server', server, '--allow-private-destinations', '--hold', '600s', '--drain-timeout', '2s', '--idle-timeout', '1s',
                  name='relay-forgets').start()

    def command(*words):
        return subprocess.run([str(w) for w in (BUILD / 'millracectl', '--socket', relay.spool / 'admin.sock', *words)], capture_output=True, text=True,
                              timeout=60)

    def send():
        load('--messages', 1, '--connections', 1, '--domains', 'once.test')
    receiver = sink('--tls', 'starttls', *certificate_flags(theirs), listen=at)
    send()
    eventually(lambda: len(relay.events('delivered')) == 1, 30, 'the first, over TLS')
    receiver.finish()
    receiver = sink(listen=at)
    refused = command('forget-tls', 'elsewhere.test')
    check(refused.returncode == 1 and 'no mail for elsewhere.test' in refused.stderr + refused.stdout, f'an unknown domain: {refused}')
    send()
    eventually(lambda: relay.events('queue'), 30, 'the second waits')
    equal(len(relay.events('delivered')), 1, 'nothing in the clear')
    forgotten = command('forget-tls', 'once.test')
    check(forgotten.returncode == 0 and 'mx.once.test' in forgotten.stdout, f'forget-tls: {forgotten}')
    check(command('retry', '--domain', 'once.test').returncode == 0, 'retry')
    eventually(lambda: len(relay.events('delivered')) == 2, 30, 'the second, in the clear')
    equal(relay.events('delivered')[1]['tls_reason'], 'STARTTLS not offered', 'why')
    relay.stop()
    relay.start()
    send()
    eventually(lambda: len(relay.events('delivered')) == 3, 30, 'the third, after a restart')
    relay.stop()
    receiver.finish()


def postfix_on_both_sides(mine, theirs):
    for address in ('45.0.2.1', '45.0.2.2'):
        peers.add_address(address)
    level = 'smtp_tls_security_level = encrypt\n'
    behind = peers.Postfix('45.0.2.1', settings=f'smtpd_tls_security_level = encrypt\nsmtpd_tls_cert_file = {theirs[0]}\n'
                                                 f'smtpd_tls_key_file = {theirs[1]}\nsmtpd_tls_received_header = yes\n')
    relay = Relay(*certificate_flags(mine), '--require-tls', '--tls', 'required', '--relay-from', '45.0.2.2',
                  '--smarthost', '45.0.2.1:25',
                  name='relay-postfix').start()
    peers.Postfix('45.0.2.2', domain='front.test', relayhost=('127.0.0.1', 2500), name='front', settings=level)
    for number in range(5):
        subprocess.run([find('swaks'), '--server', '45.0.2.2:25', '--from', 'a@front.test', '--to', 'box@receiver.test',
                        '--body', f'number {number}'], check=True, capture_output=True, timeout=60)
    eventually(lambda: len(behind.stored()) == 5, 60, 'Postfix has stored them')
    for raw in behind.stored():
        check(b'TLSv1.3' in raw and b'with ESMTPS id' in raw, f'Received headers: {raw[:800]!r}')
    for event in relay.events('delivered'):
        equal(event['tls_version'], 'TLSv1.3', 'towards Postfix')
    relay.stop()


def exim_on_both_sides(mine, theirs):
    for address in ('45.0.2.3', '45.0.2.4'):
        peers.add_address(address)
    os.chmod(theirs[1], 0o644)  # Exim reads it as its own user
    behind = peers.Exim('45.0.2.3', 'receiver.test', name='exim-behind', tls=theirs)
    relay = Relay(*certificate_flags(mine), '--require-tls', '--tls', 'required', '--smarthost', '45.0.2.3:25',
                  name='relay-exim').start()
    peers.Exim('45.0.2.4', 'front.test', relayhost=('127.0.0.1', 2500), name='exim-front', tls=theirs)
    for number in range(5):
        subprocess.run([find('swaks'), '--server', '45.0.2.4:25', '--tls', '--from', 'a@front.test', '--to', 'box@receiver.test',
                        '--body', f'number {number}'], check=True, capture_output=True, timeout=60)
    eventually(lambda: len(behind.stored()) == 5, 60, 'Exim has stored them')
    for raw in behind.stored():
        check(b'with ESMTPS id' in raw and b'esmtps' in raw, f'Received headers: {raw[:800]!r}')
    for kind in ('received', 'delivered'):
        for event in relay.events(kind):
            equal(event['tls_version'], 'TLSv1.3', f'Exim: {kind}')
    relay.stop()


def test():
    mine, theirs = certificate('mine', 'relay.test'), certificate('theirs', 'receiver.test')
    ours_on_both_sides(mine, theirs)
    clients_of_others(mine)
    faults(theirs)
    forgotten_by_command(theirs)
    if peers.POSTFIX.exists():
        postfix_on_both_sides(mine, theirs)
    if peers.EXIM.exists():
        exim_on_both_sides(mine, theirs)


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink', 'millracectl', 'nsd', 'openssl', 'swaks', 'ip')
    isolate()
    run(test)
