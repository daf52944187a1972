#!/usr/bin/env python3
"""MTA-STS (RFC 8461) against real HTTPS servers: policies that are good, and every way in which one is not; policies that
change, that outlive their server and a restart, and that end."""
import http.server
import json
import os
import ssl
import subprocess
import threading
import time

from harness import (BUILD, SCRATCH, Relay, check, dns, end, equal, eventually, find, isolate, load, log_of, need, run, sink)

POLICY = 'version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: {age}\n'
REQUESTS = []  # (domain, path)


def openssl(*words):
    subprocess.run([find('openssl'), *map(str, words)], check=True, capture_output=True)


def authority():
    openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30', '-subj', '/CN=Authority',
            '-keyout', SCRATCH / 'ca.key', '-out', SCRATCH / 'ca.pem')
    os.chmod(SCRATCH, 0o755)


def certificate(host, trusted=True):
    base = SCRATCH / f'{host}-{trusted}'
    signed = ('-CA', SCRATCH / 'ca.pem', '-CAkey', SCRATCH / 'ca.key') if trusted else ()
    openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30', '-subj', f'/CN={host}',
            '-addext', f'subjectAltName=DNS:{host}', '-addext', 'basicConstraints=critical,CA:FALSE', *signed,
            '-keyout', f'{base}.key', '-out', f'{base}.pem')
    return f'{base}.pem', f'{base}.key'


class Answers(http.server.BaseHTTPRequestHandler):
    """What an HTTPS server of a test says; do_GET and do_POST are the test's."""

    def answer(self, status, body, kind='text/plain', **headers):
        self.send_response(status)
        for name, value in {'Content-Type': kind, 'Content-Length': str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


class HttpsServer(http.server.ThreadingHTTPServer):
    """Serves on port 443 of this address until the end of the process; `pair`: certificate and key."""
    daemon_threads = True

    def __init__(self, address, pair, answers):
        super().__init__((address, 443), answers)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *words):
        pass  # a client that does not like the certificate


class Case:
    """A domain: its policy host, its MX host."""

    def __init__(self, name, policy, arrives=True, why='', mode='enforce', mx=None, age=86400, mx_trusted=True, https_name=None,
                 https_trusted=True, kind='text/plain', status=200, padding=0, hangs=False, fetched=True):
        self.name, self.policy, self.arrives, self.why = name, policy, arrives, why
        self.mode, self.mx, self.age, self.mx_trusted = mode, mx, age, mx_trusted
        self.https_name, self.https_trusted = https_name, https_trusted
        self.kind, self.status, self.padding, self.hangs, self.fetched = kind, status, padding, hangs, fetched
        self.domain = f'{name}.test'

    def serve(self, number):
        self.mx_address, self.https_address = f'127.0.20.{number + 1}', f'127.0.30.{number + 1}'
        self.files = certificate(f'mx.{self.domain}', self.mx_trusted)
        pair = certificate(self.https_name or f'mta-sts.{self.domain}', self.https_trusted)
        case = self

        class Policy(Answers):
            def do_GET(self):
                REQUESTS.append((case.name, self.path))
                if case.hangs:
                    time.sleep(60)
                body = POLICY.format(mode=case.mode, mx=case.mx or f'mx.{case.domain}', age=case.age) + case.padding * '\n'
                elsewhere = {'Location': f'https://mta-sts.{case.domain}/elsewhere'} if case.status in (301, 302) else {}
                self.answer(case.status, body.encode(), case.kind, **elsewhere)

        self.server = HttpsServer(self.https_address, pair, Policy)

    def zone(self, identity='1'):
        return (f'{self.name} MX 10 mx.{self.name}\nmx.{self.name} A {self.mx_address}\n_mta-sts.{self.name} TXT "v=STSv1; id={identity};"\n'
                f'mta-sts.{self.name} A {self.https_address}\n')

    def receiver(self):
        return sink('--tls', 'starttls', '--tls-certificate', self.files[0], '--tls-key', self.files[1], listen=(f'{self.mx_address}:25',))


CASES = [
    Case('good', 'mta-sts'),
    Case('wildcard', 'mta-sts', mx='*.wildcard.test'),
    Case('bad-mx', '', arrives=False, why='untrusted', mx_trusted=False),
    Case('other-mx', '', arrives=False, why='named by its MTA-STS policy', mx='mx.elsewhere.test'),
    Case('testing', 'mta-sts-testing', mode='testing', mx_trusted=False),
    Case('testing-mx', 'mta-sts-testing', mode='testing', mx='mx.elsewhere.test'),
    Case('off', 'opportunistic', mode='none', mx_trusted=False),
    # The policy cannot be had, and none is known: as if there were none.
    Case('https-name', 'opportunistic', mx_trusted=False, https_name='mta-sts.elsewhere.test', fetched=False),
    Case('https-untrusted', 'opportunistic', mx_trusted=False, https_trusted=False, fetched=False),
    Case('html', 'opportunistic', mx_trusted=False, kind='text/html', fetched=False),
    Case('charset', 'mta-sts', kind='Text/Plain; charset=utf-8'),
    Case('large', 'opportunistic', mx_trusted=False, padding=70_000, fetched=False),
    Case('redirect', 'opportunistic', mx_trusted=False, status=302, fetched=False),
    Case('missing', 'opportunistic', mx_trusted=False, status=404, fetched=False),
    Case('hangs', 'opportunistic', mx_trusted=False, hangs=True, fetched=False),
    Case('mode', 'opportunistic', mode='strict', mx_trusted=False, fetched=False),
]
BY_NAME = {case.name: case for case in CASES}


def outcome(relay, case):
    delivered = [e for e in relay.events('delivered') if e['recipient'].endswith('@' + case.domain)]
    waits = [e for e in relay.events('queue') if case.domain in (e.get('site', '') + e.get('reply', '') + e.get('reason', ''))]
    return delivered or waits


def start(server, name, *more):
    return Relay('--dns-server', server, '--allow-private-destinations', '--hold', '600s', '--connect-rate', '1000/s', '--reports', 'none',
                 '--drain-timeout', '2s', '--tls-ca-file', SCRATCH / 'ca.pem', *more, name=name)


def each_case(server):
    sinks = [case.receiver() for case in CASES]
    relay = start(server, 'relay').start()
    for case in CASES:
        load('--messages', 1, '--connections', 1, '--domains', case.domain)
    for case in CASES:
        found = eventually(lambda case=case: outcome(relay, case), 60, f'an outcome of {case.domain}')
        equal({e['type'] for e in found}, {'delivered' if case.arrives else 'queue'}, f'{case.name}: {found}')
        if case.arrives:
            equal(found[0]['tls_policy'], case.policy, f'{case.name}: policy')
            equal(found[0]['tls_verified'], 'ok' if case.mx_trusted else 'untrusted', f'{case.name}: verified')
        else:
            said = found[0].get('reply', '') + found[0].get('reason', '')
            check(case.why in said, f'{case.name}: why it waits: {found[0]}')
        refused = f'the MTA-STS policy of {case.domain} cannot be had' in log_of('relay')
        equal(refused, not case.fetched, f'{case.name}: whether its policy was taken: {log_of("relay")[-3000:]}')
    equal({path for _, path in REQUESTS}, {'/.well-known/mta-sts.txt'}, 'what was asked for, no redirect among it')
    equal(len(relay.events('bounced')), 0, 'nothing bounces')
    status = subprocess.run([BUILD / 'millracectl', '--socket', relay.spool / 'admin.sock', '--json', 'status'], capture_output=True, text=True)
    counted = json.loads(status.stdout)['tls_out']
    malformed = [case for case in CASES if case.mode == 'strict']
    equal([counted[f'policies_{what}'] for what in ('fetched', 'malformed', 'no_https', 'no_host', 'too_many')],
          [sum(case.fetched for case in CASES), len(malformed), sum(not case.fetched for case in CASES) - len(malformed), 0, 0],
          f'what is counted of policies: {counted}')
    relay.stop()
    for case, receiver in zip(CASES, sinks):
        equal(receiver.finish()['messages'], 1 if case.arrives else 0, f'{case.name}: messages that arrived')


def change(server, texts):
    """Other records, from a name server and a relay that remember none of the old ones."""
    path = SCRATCH / 'nsd/test'
    text = path.read_text()
    for old, new in texts:
        check(old in text, f'{old} is in the zone')
        text = text.replace(old, new)
    end(server.process)
    path.write_text(text)
    server.start()


def policies_change(server):
    """What is known holds after a restart, without server and record; a new id brings a new policy; max_age ends it."""
    case, brief = BY_NAME['testing'], BY_NAME['good']
    receivers = [case.receiver(), brief.receiver()]
    brief.age = 5
    relay = start(server, 'changing').start()
    load('--messages', 1, '--connections', 1, '--domains', case.domain)
    load('--messages', 1, '--connections', 1, '--domains', brief.domain)
    for one, policy in ((case, 'mta-sts-testing'), (brief, 'mta-sts')):
        found = eventually(lambda one=one: outcome(relay, one), 30, f'the first of {one.name}')
        equal(found[0]['tls_policy'], policy, f'{one.name}: at first')
    relay.stop()
    since = time.monotonic()

    # Another id: enforced from now on, by a receiver whose certificate is no good.
    case.mode = 'enforce'
    change(server, [(f'_mta-sts.{case.name} TXT "v=STSv1; id=1;"', f'_mta-sts.{case.name} TXT "v=STSv1; id=2;"')])
    relay = start(server, 'changing').start()
    load('--messages', 1, '--connections', 1, '--domains', case.domain)
    eventually(lambda: [e for e in relay.events('queue') if case.domain in e.get('site', '')], 30, 'mail waits under the new policy')
    relay.stop()

    # Neither server nor record: it holds, from the disk.
    case.server.shutdown()
    case.server.server_close()
    brief.server.shutdown()
    brief.server.server_close()
    change(server, [(f'_mta-sts.{case.name} TXT "v=STSv1; id=2;"', ''), (f'_mta-sts.{brief.name} TXT "v=STSv1; id=1;"', '')])
    before = len(relay.events('queue'))  # what is queued may be tried, and held, as soon as it starts
    relay = start(server, 'changing').start()
    load('--messages', 1, '--connections', 1, '--domains', case.domain)
    eventually(lambda: len(relay.events('queue')) > before, 30, 'mail waits, though nobody says so any more')
    equal(len([e for e in relay.events('delivered') if e['recipient'].endswith('@' + case.domain)]), 1, 'nothing more was delivered')

    # Past its max_age the other one has ended.
    time.sleep(max(0, 6 - (time.monotonic() - since)))
    load('--messages', 1, '--connections', 1, '--domains', brief.domain)
    found = eventually(lambda: [e for e in outcome(relay, brief) if e['tls_policy'] != 'mta-sts'], 30, 'the second of the brief one')
    equal(found[0]['tls_policy'], 'opportunistic', 'after its max_age')
    relay.stop()
    for receiver in receivers:
        receiver.finish()


def test():
    authority()
    for number, case in enumerate(CASES):
        case.serve(number)
    server = dns({'test': ''.join(case.zone() for case in CASES)})
    each_case(server)
    policies_change(server)


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink', 'millracectl', 'nsd', 'openssl', 'ip')
    isolate()
    run(test)
