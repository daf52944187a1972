#!/usr/bin/env python3
"""TLS reports (RFC 8460) to a real HTTPS server: a domain under an MTA-STS policy with one MX host that fails it and one that
meets it, a domain that has no TLS, one that wants its report by mail; a server that answers at the second try; what an operator
asks for, and what a restart keeps."""
import gzip
import json
import subprocess

from harness import BUILD, SCRATCH, Relay, check, dns, equal, eventually, isolate, load, log_of, need, run, sink
from relay_checks_mta_sts import Answers, HttpsServer, authority, certificate

POSTS = []  # (path, content type, report)
ANSWERS = {'/in': [200], '/busy': [503, 201], '/plain': [200]}
POLICY = 'version: STSv1\r\nmode: enforce\r\nmx: *.two.test\r\nmax_age: 86400\r\n'


def serve(address, name, trusted=True):
    """HTTPS: the policy by GET, reports by POST."""
    class Handler(Answers):
        def do_GET(self):
            self.answer(200, POLICY.encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers['Content-Length']))
            POSTS.append((self.path, self.headers['Content-Type'], json.loads(gzip.decompress(body))))
            answers = ANSWERS[self.path]
            self.answer(answers.pop(0) if len(answers) > 1 else answers[0], b'thanks')

    HttpsServer(address, certificate(name, trusted), Handler)


def ctl(relay, *words):
    done = subprocess.run([BUILD / 'millracectl', '--socket', relay.spool / 'admin.sock', '--json', *words], capture_output=True, text=True)
    equal(done.returncode, 0, f'millracectl {words}: {done.stderr}')
    return json.loads(done.stdout)


def counted(relay):
    return {row['domain']: (row['successful'], row['failed']) for row in ctl(relay, 'tls-reports', 'list')['rows']}


def start(server, contact='tls-reports@relay.test'):
    return Relay('--dns-server', server, '--allow-private-destinations', '--connect-rate', '1000/s', '--reports', 'none', '--drain-timeout', '2s',
                 '--tls-ca-file', SCRATCH / 'ca.pem', '--tls-reports', contact, '--tls-reports-organization', 'The Relay', name='relay').start()


def test():
    authority()
    serve('127.0.30.1', 'mta-sts.two.test')
    serve('127.0.30.2', 'reports.test')
    serve('127.0.30.3', 'evil.test', trusted=False)
    server = dns({'test': (
        'two MX 10 bad.two\ntwo MX 20 good.two\nbad.two A 127.0.20.1\ngood.two A 127.0.20.2\n'
        '_mta-sts.two TXT "v=STSv1; id=1;"\nmta-sts.two A 127.0.30.1\n'
        '_smtp._tls.two TXT "v=TLSRPTv1; rua=https://reports.test/in,mailto:tls@two.test"\n'
        'plain MX 10 mx.plain\nmx.plain A 127.0.20.3\n_smtp._tls.plain TXT "v=TLSRPTv1; rua=https://reports.test/plain"\n'
        'busy MX 10 mx.busy\nmx.busy A 127.0.20.3\n_smtp._tls.busy TXT "v=TLSRPTv1; rua=https://reports.test/busy"\n'
        'bymail MX 10 mx.bymail\nmx.bymail A 127.0.20.3\n_smtp._tls.bymail TXT "v=TLSRPTv1; rua=mailto:tls@bymail.test"\n'
        'evil MX 10 mx.evil\nmx.evil A 127.0.20.3\n_smtp._tls.evil TXT "v=TLSRPTv1; rua=https://evil.test/in"\n'
        'none MX 10 mx.none\nmx.none A 127.0.20.3\n'
        'reports A 127.0.30.2\nevil A 127.0.30.3\n')})
    receivers = []
    for address, host, trusted in (('127.0.20.1', 'bad.two.test', False), ('127.0.20.2', 'good.two.test', True)):
        chain, key = certificate(host, trusted)
        receivers.append(sink('--tls', 'starttls', '--tls-certificate', chain, '--tls-key', key, listen=(f'{address}:25',)))
    receivers.append(sink(listen=('127.0.20.3:25',)))
    relay = start(server)
    domains = ('two.test', 'plain.test', 'busy.test', 'bymail.test', 'evil.test', 'none.test')
    for domain in domains:
        load('--messages', 1, '--connections', 1, '--domains', domain)
    eventually(lambda: len(relay.events('delivered')) == len(domains), 60, 'all mail is delivered')
    relay.stop()

    # What was counted is there after a restart.
    relay = start(server)
    expected = {domain: (0, 1) for domain in domains} | {'two.test': (1, 1)}
    equal(counted(relay), expected, 'what was counted')
    equal(POSTS, [], 'nothing goes before its time')
    equal(ctl(relay, 'tls-reports', 'send')['reports'], len(domains), 'reports that are due')
    eventually(lambda: len(POSTS) >= 3, 60, 'the reports')
    by_path = {path: (kind, report) for path, kind, report in POSTS}
    equal(set(by_path), {'/in', '/plain', '/busy'}, 'who was posted to')
    for kind, report in by_path.values():
        equal(kind, 'application/tlsrpt+gzip', 'the media type')
        equal((report['organization-name'], report['contact-info']), ('The Relay', 'tls-reports@relay.test'), 'who reports')
        check(report['date-range']['start-datetime'] < report['date-range']['end-datetime'], f'the time: {report["date-range"]}')
    policies = by_path['/in'][1]['policies']
    equal(len(policies), 1, 'policies of two.test')
    equal(policies[0]['policy'], {'policy-type': 'sts', 'policy-string': ['version: STSv1', 'mode: enforce', 'mx: *.two.test', 'max_age: 86400'],
                                  'policy-domain': 'two.test', 'mx-host': ['*.two.test']}, 'the policy')
    equal(policies[0]['summary'], {'total-successful-session-count': 1, 'total-failure-session-count': 1}, 'the sessions')
    details = policies[0]['failure-details']
    equal([(one['result-type'], one['receiving-mx-hostname'], one['receiving-ip'], one['failed-session-count']) for one in details],
          [('certificate-not-trusted', 'bad.two.test', '127.0.20.1', 1)], 'the failure')
    check(details[0]['sending-mta-ip'].startswith('127.0.'), f'our own address: {details}')
    details = by_path['/plain'][1]['policies'][0]
    equal((details['policy']['policy-type'], details['failure-details'][0]['result-type']), ('no-policy-found', 'starttls-not-supported'),
          'without TLS and policy')

    eventually(lambda: 'evil.test could not be sent' in log_of('relay'), 30, 'a server that is not what it says gets nothing')
    eventually(lambda: 'TLS report for bymail.test is not sent' in log_of('relay'), 30, 'what is said of reports by mail')
    eventually(lambda: set(counted(relay)) == {'busy.test', 'evil.test'}, 30, 'what has to be tried again')
    ctl(relay, 'tls-reports', 'send')  # at once
    eventually(lambda: [path for path, _, _ in POSTS].count('/busy') == 2, 30, 'the second try')
    eventually(lambda: set(counted(relay)) == {'evil.test'}, 30, 'it was taken')
    equal(ctl(relay, 'status')['tls_out']['reports_sent'], 3, 'reports sent')
    ids = [report['report-id'] for path, _, report in POSTS if path == '/busy']
    equal(ids[0], ids[1], 'it is the same report')
    relay.stop()
    for receiver in receivers:
        receiver.finish()

    wrong = subprocess.run([BUILD / 'millrace', '--check-config', '--tls-reports', 'nobody', '--hostname', 'relay.test', '--spool', SCRATCH / 'none'],
                           capture_output=True, text=True)
    check(wrong.returncode != 0 and "--tls-reports: 'nobody' is no mail address" in wrong.stderr, f'--check-config: {wrong.stderr}')


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink', 'millracectl', 'nsd', 'openssl', 'ip')
    isolate()
    run(test)
