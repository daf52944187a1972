#!/usr/bin/env python3
"""Receivers with the limits and words of known providers, found by MX records of many domains that they host. With what
is built in for them, and no shaping file, a relay of two shards delivers everything and is never over a limit; with
limits above theirs it is told so, holds back, and still delivers everything."""
import peers
from harness import (SCRATCH, Relay, certificate, certificate_flags, check, dns, equal, eventually, isolate, load, log_of, need,
                     run, sink)

MESSAGES = 1000
DOMAINS = 20  # hosted by each
# profile: the suffix of its MX hosts
PROVIDERS = {
    'gmail': 'l.google.com', 'yahoo': 'am0.yahoodns.net', 'outlook': 'olc.protection.outlook.com',
    'microsoft365': 'mail.protection.outlook.com', 'comcast': 'email.comcast.net', 'apple': 'mail.icloud.com',
    'orange': 'orange.fr', 'mimecast': 'smtp.mimecast.com',
}
HOSTS = 3  # of each, with an address each


def zone_of(suffix):
    """The part of a zone's text for a suffix of four labels at most: its zone is the last two."""
    labels = suffix.split('.')
    return '.'.join(labels[-2:]), '.'.join(labels[:-2])


def build():
    zones, receivers = {'example': []}, {}
    for number, (profile, suffix) in enumerate(PROVIDERS.items()):
        addresses = [f'45.{number + 1}.0.{host + 1}' for host in range(HOSTS)]
        for address in addresses:
            peers.add_address(address)
        apex, below = zone_of(suffix)
        for host, address in enumerate(addresses):
            name = f'mx{host}.{below}' if below else f'mx{host}'
            zones.setdefault(apex, []).append(f'{name} A {address}')
        for domain in range(DOMAINS):
            for host in range(HOSTS):
                zones['example'].append(f'{profile}-{domain} MX {10 + host // 2} mx{host}.{suffix}.')
        receivers[profile] = addresses
    return {name: '\n'.join(lines) for name, lines in zones.items()}, receivers


def play(relay, receivers, profile, ledger, theirs):
    receiver = sink('--profile', profile, '--latency', '2ms', '--ledger', ledger, '--tls', 'starttls', *certificate_flags(theirs),
                    listen=[f'{address}:25' for address in receivers[profile]])
    before = len(relay.events('delivered'))
    load('--messages', MESSAGES, '--connections', 10, '--size', 2000, '--recipients', 1, '--ledger', ledger,
         '--domains', ','.join(f'{profile}-{domain}.example:1' for domain in range(DOMAINS)), port=relay.port)
    eventually(lambda: len(relay.events('delivered')) == before + MESSAGES, 120, f'{profile}: everything is delivered')
    result = receiver.finish()
    equal([result['ledger'][fault] for fault in ('missing', 'altered', 'duplicates')], [0, 0, 0], f'{profile}: {result["ledger"]}')
    print(f'{profile}: {result["connections"]} connections, at most {result["most_connections_of_a_client"]} at a time, at most '
          f'{result["most_messages_on_a_connection"]} messages on one; over a limit: {result["violations"] or "never"}')
    return result


def test():
    zones, receivers = build()
    theirs = certificate('receiver', 'mx.example')
    server = dns(zones, port=53)
    relay = Relay('--dns-server', server, '--reports', 'none', '--shards', '2', '--connect-rate', '1000/s').start()
    for profile in PROVIDERS:
        result = play(relay, receivers, profile, SCRATCH / f'ledger-{profile}', theirs)
        equal(result['violations'], {}, profile)
    relay.stop()

    greedy = SCRATCH / 'greedy.toml'
    greedy.write_text('[provider.gmail]\nconnections = 12\nmessages-per-connection = 80\n')
    relay = Relay('--dns-server', server, '--reports', 'none', '--shards', '2', '--connect-rate', '1000/s', '--initial-connections',
                  '10', '--hold', '1s', '--retry', '1s', '--shaping', greedy, name='greedy', port=2501).start()
    result = play(relay, receivers, 'gmail', SCRATCH / 'ledger-greedy', theirs)
    check(result['violations'], 'the receiver tells when its limits are exceeded')
    relay.stop()
    for name in ('relay', 'greedy'):
        for line in log_of(name).splitlines():
            check(' error ' not in line, line)


if __name__ == '__main__':
    need('millrace', 'nsd', 'openssl')
    isolate()
    run(test)
