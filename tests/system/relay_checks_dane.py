#!/usr/bin/env python3
"""DANE (RFC 7672) with a signed zone: NSD serves it, Unbound checks it. Case by case what becomes of mail, and what
Postfix's posttls-finger makes of the same host."""
import os
import re
import subprocess

import peers
from harness import (SCRATCH, Relay, check, dns, equal, eventually, find, isolate, load, need, run, sign_zone, sink, spawn,
                     validating_resolver)


class Case:
    """One host and its domain. `records`: TLSA lines of the zone, with {ee}, {spki}, {ca} for digests of what it shows."""

    def __init__(self, name, arrives, policy, finger, records=(), certificate='own', zone='dane.test', mx=None, more='',
                 starttls=True, why=''):
        self.name, self.arrives, self.policy, self.finger = name, arrives, policy, finger
        self.records, self.certificate, self.zone, self.mx, self.more = records, certificate, zone, mx, more
        self.starttls, self.why = starttls, why
        self.domain, self.host = f'{name}.{zone}', f'mx.{name}'


VERIFIED, NOT_VERIFIED = r'Verified TLS connection established', r'(Untrusted|Trusted|Anonymous) TLS connection established'
NO_TLS = r'(?s)\A(?!.*TLS connection established)'
CASES = [
    Case('ee', True, 'dane', VERIFIED, ['3 1 1 {spki}']),
    Case('whole', True, 'dane', VERIFIED, ['3 0 1 {whole}']),
    Case('ta', True, 'dane', VERIFIED, ['2 0 1 {ca}'], 'chained'),
    Case('ta-key', True, 'dane', VERIFIED, ['2 1 1 {ca_spki}'], 'chained'),
    Case('ta-next-hop', True, 'dane', VERIFIED, ['2 0 1 {ca}'], 'chained-domain'),
    Case('ta-name', False, '', NOT_VERIFIED, ['2 0 1 {ca}'], 'chained-other', why='wrong name'),
    Case('ta-expired', False, '', NOT_VERIFIED, ['2 0 1 {ca}'], 'chained-expired', why='expired'),
    Case('ta-absent', False, '', NOT_VERIFIED, ['2 0 1 {ca}'], 'unchained', why='no TLSA record fits'),
    Case('wrong', False, '', NOT_VERIFIED, ['3 1 1 ' + '5' * 64], why='no TLSA record fits'),
    Case('unusable', True, 'dane-unusable', NOT_VERIFIED, ['1 1 1 {spki}', '3 1 1 abcd']),
    Case('mixed', True, 'dane', VERIFIED, ['0 0 1 {whole}', '3 1 1 ' + '5' * 64, '3 1 1 {spki}', '2 0 1 {ca}']),
    Case('expired', True, 'dane', VERIFIED, ['3 1 1 {spki}'], 'expired'),
    Case('none', True, 'opportunistic', NOT_VERIFIED),
    Case('bogus', False, '', r'(?i)TLSA lookup error|try again', ['3 1 1 {spki}'], why='TLSA look-up'),
    Case('clear', False, '', NO_TLS, ['3 1 1 {spki}'], starttls=False, why='STARTTLS'),
    Case('insecure', True, 'opportunistic', NOT_VERIFIED, ['3 1 1 ' + '5' * 64], zone='plain.test'),
    Case('insecure-clear', True, 'opportunistic', NO_TLS, ['3 1 1 ' + '5' * 64], zone='plain.test', starttls=False),
    # Aliases in place of the MX host (RFC 7672 2.2.2): of a host with records, of one without, of one that is not signed.
    Case('alias', True, 'dane', VERIFIED, ['3 1 1 {spki}'], mx='to.alias', more='to.alias CNAME mx.alias\n'),
    Case('alias-own', True, 'dane', VERIFIED, mx='to.alias-own', certificate='own',
         more='to.alias-own CNAME mx.alias-own\n_25._tcp.to.alias-own TLSA 3 1 1 {spki}\n'),
    Case('alias-out', True, 'dane', VERIFIED, mx='to.alias-out',
         more='to.alias-out CNAME target.plain.test.\n_25._tcp.to.alias-out TLSA 3 1 1 {spki}\n'),
    Case('alias-wrong', False, '', NOT_VERIFIED, ['3 1 1 ' + '5' * 64], mx='to.alias-wrong', why='no TLSA record fits',
         more='to.alias-wrong CNAME mx.alias-wrong\n_25._tcp.to.alias-wrong TLSA 3 1 1 {spki}\n'),
]


def openssl(*words, text=None):
    return subprocess.run([find('openssl'), *map(str, words)], check=True, capture_output=True, input=text).stdout


class Authority:
    def __init__(self):
        self.home = SCRATCH / 'ca'
        (self.home / 'new').mkdir(parents=True)
        os.chmod(SCRATCH, 0o755)
        (self.home / 'index').write_text('')
        (self.home / 'serial').write_text('01')
        (self.home / 'conf').write_text(
            f'[ca]\ndefault_ca=d\n[d]\ndatabase={self.home}/index\nserial={self.home}/serial\nnew_certs_dir={self.home}/new\n'
            f'certificate={self.home}/ca.pem\nprivate_key={self.home}/ca.key\ndefault_md=sha256\npolicy=p\n'
            'copy_extensions=copy\nunique_subject=no\n[p]\ncommonName=supplied\n')
        openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30', '-subj', '/CN=Authority',
                '-keyout', self.home / 'ca.key', '-out', self.home / 'ca.pem')

    def make(self, name, host, expired=False, alone=False):
        base = self.home / name
        openssl('req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', f'/CN={host}', '-addext',
                f'subjectAltName=DNS:{host}', '-keyout', f'{base}.key', '-out', f'{base}.csr')
        dates = ('20200101000000Z', '20210101000000Z') if expired else ('20200101000000Z', '20490101000000Z')
        signed_by = ('-selfsign', '-keyfile', f'{base}.key') if alone else ()
        openssl('ca', '-batch', '-notext', '-config', self.home / 'conf', '-startdate', dates[0], '-enddate', dates[1], *signed_by,
                '-in', f'{base}.csr', '-out', f'{base}.pem')
        return base


def digest(pem, key=False):
    if key:
        public = openssl('x509', '-in', pem, '-pubkey', '-noout')
        return openssl('dgst', '-sha256', '-r', text=openssl('pkey', '-pubin', '-outform', 'der', text=public)).decode().split()[0]
    return openssl('dgst', '-sha256', '-r', text=openssl('x509', '-in', pem, '-outform', 'der')).decode().split()[0]


def prepare_case(case, number, authority):
    """The certificate, and the case's part of its zone."""
    case.address = f'127.0.10.{number + 1}'
    host = f'{case.host}.{case.zone}'
    kind = case.certificate
    name = {'chained-domain': case.domain, 'chained-other': 'mx.elsewhere.test'}.get(kind, host)
    base = authority.make(case.name, name, 'expired' in kind, kind in ('own', 'expired'))
    ca = authority.home / 'ca.pem'
    if kind.startswith('chained'):
        with open(f'{base}.pem', 'a') as chain:
            chain.write(ca.read_text())
    case.files = (f'{base}.pem', f'{base}.key')
    values = {'spki': digest(f'{base}.pem', True), 'whole': digest(f'{base}.pem'), 'ca': digest(ca), 'ca_spki': digest(ca, True)}
    lines = [f'{case.name} MX 10 {case.mx or case.host}\n', f'{case.host} A {case.address}\n', case.more.format(**values)]
    lines += [f'_25._tcp.{case.host} TLSA {record.format(**values)}\n' for record in case.records]
    return ''.join(lines)


def finger(domain, *options):
    """What posttls-finger says of the domain's MX, with a resolver of ours for the time."""
    home = SCRATCH / 'finger'
    if not home.exists():
        home.mkdir()
        (home / 'main.cf').write_text('compatibility_level = 3.6\nmyhostname = finger.test\nmydomain = test\ninet_protocols = ipv4\n'
                                      f'queue_directory = {home}\ndata_directory = {home}\n')
        (home / 'resolv.conf').write_text('nameserver 127.0.0.1\noptions trust-ad edns0\n')
    command = f'mount --bind {home}/resolv.conf /etc/resolv.conf && exec env MAIL_CONFIG={home} {find("posttls-finger")} "$@"'
    done = subprocess.run([find('unshare'), '--mount', 'sh', '-c', command, 'sh', '-c', '-t', '10', '-T', '10', '-l', 'dane', '-L',
                           'verbose,summary', *options, domain], capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def spoil(zone):
    """Alters the record of `bogus` behind its signature's back."""
    return re.sub(r'(_25\._tcp\.mx\.bogus\.dane\.test\.\s+\d+\s+IN\s+TLSA\s+3 1 1 )(\w)', lambda m: m[1] + ('0' if m[2] != '0' else '1'), zone)


def test():
    authority = Authority()
    zones = {'dane.test': '', 'plain.test': 'target A 127.0.10.200\n'}
    for number, case in enumerate(CASES):
        zones[case.zone] += prepare_case(case, number, authority)
        if case.name == 'alias-out':
            zones['plain.test'] = zones['plain.test'].replace('127.0.10.200', case.address)
    anchors = []
    server = dns(zones, prepare=lambda folder: anchors.append(sign_zone(folder, 'dane.test', spoil)))
    resolver = validating_resolver(server, anchors, zones)

    sinks = []
    for case in CASES:
        options = ['--tls', 'starttls', '--tls-certificate', case.files[0], '--tls-key', case.files[1]] if case.starttls else []
        sinks.append(sink(*options, listen=(f'{case.address}:25',)))
    relay = Relay('--dns-server', resolver, '--allow-private-destinations', '--hold', '600s', '--connect-rate', '1000/s', '--reports', 'none',
                  '--drain-timeout', '2s').start()
    for case in CASES:
        load('--messages', 2, '--connections', 1, '--domains', case.domain)

    def outcome(case):
        site_of = f'mx.{case.name}.{case.zone}' if not case.mx else f'{case.mx}.{case.zone}'
        delivered = [e for e in relay.events('delivered') if e['recipient'].endswith('@' + case.domain)]
        held = [e for e in relay.events('queue') if e.get('site') == site_of]
        return (len(delivered) >= 2 and delivered) or held
    # It needs a resolv.conf of its own, so a mount namespace, which a chroot does not give.
    compared = subprocess.run([find('unshare'), '--mount', 'true'], capture_output=True).returncode == 0
    if not compared:
        print('not compared with posttls-finger: no mount namespace can be made here')
    for case in CASES:
        found = eventually(lambda case=case: outcome(case), 30, f'an outcome of {case.domain}')
        said = finger(case.domain) if compared else ''
        check(not compared or re.search(case.finger, said), f'posttls-finger on {case.domain} says {said}')
        if compared and case.policy in ('dane', 'opportunistic'):
            equal('DNSSEC-signed TLSA record' in said, case.policy == 'dane', f'{case.name}: whether posttls-finger has records: {said}')
        if case.arrives:
            equal({e['type'] for e in found}, {'delivered'}, f'{case.name}: what became of it: {found}')
            equal({e['tls_policy'] for e in found}, {case.policy}, f'{case.name}: policy')
            if case.policy == 'dane':
                equal({e['tls_verified'] for e in found}, {'ok'}, f'{case.name}: verified')
            equal('Verified' in said, compared and case.policy == 'dane', f'{case.name}: posttls-finger agrees: {said}')
            equal({bool(e.get('tls_version')) for e in found}, {case.starttls}, f'{case.name}: encrypted')
        else:
            equal({e['type'] for e in found}, {'queue'}, f'{case.name}: what became of it: {found}')
            check(case.why in found[0]['reply'], f'{case.name}: why it waits: {found[0]["reply"]}')
            check('Verified' not in said, f'{case.name}: posttls-finger agrees: {said}')
    equal(len(relay.events('bounced')), 0, 'nothing bounces')
    relay.stop()
    for case, receiver in zip(CASES, sinks):
        equal(receiver.finish()['messages'], 2 if case.arrives else 0, f'{case.name}: messages that arrived')

    # `dane` or nothing: what has no usable records waits.
    shaping = SCRATCH / 'shaping.toml'
    shaping.write_text('[domain."none.dane.test"]\ntls = "dane"\n[domain."insecure.plain.test"]\ntls = "dane"\n'
                       '[domain."wrong.dane.test"]\ntls = "required"\n')
    wanted = [case for case in CASES if case.name in ('none', 'insecure', 'wrong')]
    sinks = [sink('--tls', 'starttls', '--tls-certificate', case.files[0], '--tls-key', case.files[1], listen=(f'{case.address}:25',))
             for case in wanted]
    relay = Relay('--dns-server', resolver, '--allow-private-destinations', '--hold', '600s', '--shaping', shaping, '--reports', 'none',
                  '--drain-timeout', '2s', name='explicit').start()
    for case in wanted:
        load('--messages', 1, '--connections', 1, '--domains', case.domain)
    held = eventually(lambda: len(relay.events('queue')) == 2 and relay.events('queue'), 30, 'two sites are held')
    for event in held:
        check('TLSA records' in event['reply'], f'why: {event}')
    event = eventually(lambda: relay.events('delivered'), 30, 'the third is delivered')[0]
    equal((event['recipient'].split('@')[1], event['tls_policy']), ('wrong.dane.test', 'required'), 'what the shaping file says counts')
    relay.stop()
    for receiver in sinks:
        receiver.finish()

    # A resolver whose word does not count (asked through an address that is not loopback's): nothing is secure.
    peers.add_address('45.0.2.53')
    forward = SCRATCH / 'untrusted'
    forward.mkdir()
    (forward / 'unbound.conf').write_text(
        f'server:\n  interface: 45.0.2.53@53\n  username: ""\n  chroot: ""\n  directory: "{forward}"\n  pidfile: ""\n  use-syslog: no\n'
        '  do-daemonize: no\n  do-not-query-localhost: no\n  access-control: 0.0.0.0/0 allow\n  local-zone: "test." transparent\n'
        f'  trust-anchor-file: "{SCRATCH}/unbound/anchor-0"\nremote-control:\n  control-enable: no\n'
        + ''.join(f'stub-zone:\n  name: "{name}"\n  stub-addr: {str(server).replace(":", "@")}\n' for name in zones))
    spawn([find('unbound'), '-d', '-p', '-c', forward / 'unbound.conf'], 'untrusted')
    case = next(case for case in CASES if case.name == 'wrong')
    for trusted in (False, True):
        receiver = sink('--tls', 'starttls', '--tls-certificate', case.files[0], '--tls-key', case.files[1], listen=(f'{case.address}:25',))
        relay = Relay('--dns-server', '45.0.2.53', '--allow-private-destinations', '--hold', '600s', '--reports', 'none', '--drain-timeout', '2s',
                      *(['--dnssec-resolver', '45.0.2.53'] if trusted else []), name=f'trusted-{trusted}').start()
        load('--messages', 1, '--connections', 1, '--domains', case.domain)
        event = eventually(lambda: [e for e in relay.events() if e['type'] in ('delivered', 'queue')], 30, 'an outcome')[0]
        equal(event['type'], 'queue' if trusted else 'delivered', f'AD of a resolver elsewhere, listed: {trusted}: {event}')
        relay.stop()
        receiver.finish()


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink', 'nsd', 'unbound', 'ldns-signzone', 'posttls-finger', 'openssl', 'ip')
    isolate()
    run(test)
