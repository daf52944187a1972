#!/usr/bin/env python3
"""testssl.sh and sslscan against the relay's own side of TLS: STARTTLS and TLS from the first octet, an ECDSA and an RSA
certificate. That they would find something is shown with a server that is weak on purpose."""
import json
import os
import subprocess

from harness import SCRATCH, Relay, check, eventually, find, isolate, log_of, need, run, spawn

# What must have been looked at, else silence says nothing.
LOOKED_AT = {'SSLv2', 'SSLv3', 'TLS1', 'TLS1_1', 'TLS1_2', 'TLS1_3', 'cipherlist_NULL', 'cipherlist_aNULL', 'cipherlist_EXPORT',
             'heartbleed', 'CCS', 'ROBOT', 'secure_renego', 'CRIME_TLS', 'POODLE_SSL', 'SWEET32', 'FREAK', 'DROWN',
             'LOGJAM', 'BEAST', 'LUCKY13', 'RC4'}
GRAVE = {'MEDIUM', 'HIGH', 'CRITICAL', 'FATAL'}


def openssl(*words):
    subprocess.run([find('openssl'), *map(str, words)], check=True, capture_output=True)


def certificate(name, *algorithm):
    base = SCRATCH / name
    signed = () if name == 'ca' else ('-CA', SCRATCH / 'ca.pem', '-CAkey', SCRATCH / 'ca.key', '-addext', 'subjectAltName=DNS:relay.test',
                                      '-addext', 'basicConstraints=critical,CA:FALSE')
    openssl('req', '-x509', '-newkey', *algorithm, '-nodes', '-days', '30', '-subj', '/CN=' + ('Authority' if name == 'ca' else 'relay.test'),
            *signed, '-keyout', f'{base}.key', '-out', f'{base}.pem')
    return f'{base}.pem', f'{base}.key'


def testssl(port, *options, checks=('-p', '-s', '-f', '-P', '-U')):
    """Its findings about protocols, ciphers and vulnerabilities: {id: (severity, text)}."""
    found = SCRATCH / f'testssl-{port}.json'
    found.unlink(missing_ok=True)
    done = subprocess.run([find('testssl') or find('testssl.sh'), '--quiet', '--warnings', 'batch', '--color', '0', '--openssl-timeout', '20',
                           '--add-ca', SCRATCH / 'ca.pem', '--ip', '127.0.0.1', '--jsonfile', found, *checks, *options, f'relay.test:{port}'],
                          capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL,
                          env={**os.environ, 'TERM': 'dumb', 'HOME': str(SCRATCH)})
    check(found.exists(), f'testssl.sh wrote nothing: {done.stdout[-2000:]} {done.stderr[-2000:]}')
    entries = json.loads(found.read_text())
    return {e['id']: (e['severity'], e['finding']) for e in entries}


def is_sound(port, *options):
    found = testssl(port, *options)
    missing = LOOKED_AT - found.keys()
    check(not missing, f'port {port}: not looked at: {missing}; found {found}')
    grave = {name: what for name, what in found.items() if what[0] in GRAVE}
    check(not grave, f'port {port}: {grave}')


def sslscan(port, *options):
    done = subprocess.run([find('sslscan'), '--no-colour', '--sni-name=relay.test', *options, f'127.0.0.1:{port}'], capture_output=True,
                          text=True, timeout=300)
    return done.stdout


def weak_server_is_found(pair):
    spawn([find('openssl'), 's_server', '-accept', '127.0.0.1:2502', '-cert', pair[0], '-key', pair[1], '-cipher', 'ALL:COMPLEMENTOFALL:@SECLEVEL=0',
           '-min_protocol', 'TLSv1', '-quiet'], 'weak')
    eventually(lambda: b'ACCEPT' in log_of('weak').encode() or b':09C6' in open('/proc/net/tcp', 'rb').read(), 20, 'the weak server listens')
    found = testssl(2502, checks=('-p', '-s'))
    grave = {name for name, what in found.items() if what[0] in GRAVE}
    check(grave & {'TLS1', 'TLS1_1', 'cipherlist_aNULL', 'cipherlist_NULL', 'cipherlist_3DES_IDEA'}, f'a weak server looks sound: {found}')
    text = sslscan(2502)
    check('TLSv1.0   enabled' in text, f'a weak server looks sound to sslscan: {text}')


def test():
    certificate('ca', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256')
    ecdsa = certificate('ecdsa', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256')
    rsa = certificate('rsa', 'rsa:2048')
    relay = Relay('--listen-tls', '127.0.0.1:2501', '--tls-certificate', ecdsa[0], '--tls-key', ecdsa[1], '--tls-certificate', rsa[0],
                  '--tls-key', rsa[1], '--max-errors', 1000, '--smarthost', '127.0.0.1:2600').start()
    is_sound(2501)
    is_sound(2500, '-t', 'smtp')
    for port, options in ((2501, ()), (2500, ('--starttls-smtp',))):
        text = sslscan(port, *options)
        # Its hello for TLS 1.2 names more suites than wolfSSL reads (150), so that it sees none of that; testssl.sh does.
        for line in ('SSLv2     disabled', 'SSLv3     disabled', 'TLSv1.0   disabled', 'TLSv1.1   disabled', 'TLSv1.3   enabled',
                     'not vulnerable to heartbleed'):
            check(line in text, f'sslscan of port {port}: no "{line}": {text}')
        accepted = [line for line in text.splitlines() if line.startswith(('Accepted', 'Preferred'))]
        check(accepted, f'sslscan of port {port}: no suite: {text}')
        for line in accepted:
            check('GCM' in line or 'CHACHA20' in line, f'sslscan of port {port}: {line}')
    relay.stop()
    weak_server_is_found(rsa)


if __name__ == '__main__':
    need('millrace', 'testssl', 'sslscan', 'openssl', 'ip')
    isolate()
    run(test)
