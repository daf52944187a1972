#!/usr/bin/env python3
"""Between programs of others, all on port 25 with MX records from a real name server: clients of every kind in
front, mail servers of every kind behind. What is stored at the end is, octet for octet, what was sent, below
the headers that were added on top; who refuses a recipient bounces it, and nobody else's mail."""
import collections
import pathlib
import re
import smtplib
import subprocess

import peers
from harness import (SCRATCH, Relay, check, dns, equal, eventually, find, isolate, log_of, need, run, skip, spawn,
                     wait_for_greeting)

CONTENTS = {
    'dots': '.\r\n..\r\n. x\r\n...three\r\nlast\r\n',
    'eight-bit': 'Grüße aus Köln: ½ → ¾\r\n',
    'empty lines': '\r\n\r\n\r\n.\r\n\r\nend\r\n',
    'long line': 'x' * 990 + '\r\n',
    'many lines': ''.join(f'line {i}\r\n' for i in range(20_000)),
    'one octet': 'x\r\n',
}
BEHIND = {  # domain: address
    'postfix.test': '45.0.0.1', 'exim.test': '45.0.0.2', 'opensmtpd.test': '45.0.0.3', 'aiosmtpd.test': '45.0.0.4',
    'smtp-sink.test': '45.0.0.5', 'smtp-server.test': '45.0.0.6',
}
AFTER_OPENSMTPD, POSTFIX_IN_FRONT, EXIM_IN_FRONT = '45.0.0.9', '45.0.1.1', '45.0.1.2'


def message(name, recipient, number):
    body = CONTENTS[name]
    return (f'From: <a@sender.test>\r\nTo: <{recipient}>\r\nSubject: {name}\r\n'
            f'Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <{number}@sender.test>\r\n\r\n{body}').encode()


def as_sent(stored):
    """What is below the headers that were added on the way."""
    return stored[stored.index(b'From: <a@sender.test>'):].rstrip(b'\r\n')


def compare(stored, sent, who):
    found = collections.Counter(as_sent(m) for m in stored)
    for raw in sent:
        equal(found.pop(raw.rstrip(b'\r\n'), 0), 1, f'{who}: copies of {raw[:80]!r}')
    check(not found, f'{who}: stored what nobody sent: {[m[:200] for m in found]}')


# ---- in front: each sends one message's octets to the relay

def swaks(path, recipient):
    return [find('swaks'), '--server', '127.0.0.1:25', '--from', 'a@sender.test', '--to', recipient, '--data',
            f'@{path}', '--suppress-data']


def curl(path, recipient):
    return [find('curl'), '-sS', 'smtp://127.0.0.1:25/client.test', '--mail-from', 'a@sender.test', '--mail-rcpt',
            recipient, '--upload-file', path]


def msmtp(path, recipient):
    return ['/bin/sh', '-c', f'{find("msmtp")} -C /dev/null --host=127.0.0.1 --port=25 --from=a@sender.test '
            f'{recipient} < {path}']


def python(path, recipient, host='127.0.0.1'):
    with smtplib.SMTP(host, 25, local_hostname='client.test') as client:
        client.sendmail('a@sender.test', [recipient], pathlib.Path(path).read_bytes(), ['BODY=8BITMIME'])


def nodemailer(path, recipient):
    return [find('node') or find('nodejs'), '-e', f'''
require("/usr/share/nodejs/nodemailer").createTransport({{host: "127.0.0.1", port: 25, ignoreTLS: true, name: "client.test"}})
  .sendMail({{envelope: {{from: "a@sender.test", to: ["{recipient}"]}}, raw: require("fs").readFileSync("{path}")}},
            (error) => {{ if (error) {{ console.log(error); process.exit(1); }} }});
''']


CLIENTS = {
    'swaks': swaks, 'curl': curl, 'msmtp': msmtp, 'smtplib': python, 'nodemailer': nodemailer,
    'Postfix': lambda path, recipient: python(path, recipient, POSTFIX_IN_FRONT),
    'Exim': lambda path, recipient: python(path, recipient, EXIM_IN_FRONT),
}


def clients_in_front(relay, postfix):
    before = len(postfix.stored())
    peers.Postfix(POSTFIX_IN_FRONT, 'front.test', relayhost=('127.0.0.1', 25), name='postfix-in-front')
    peers.Exim(EXIM_IN_FRONT, 'front.test', relayhost=('127.0.0.1', 25), name='exim-in-front')
    sent = []
    for name, client in CLIENTS.items():
        for content in CONTENTS:
            raw = message(content, 'box@postfix.test', f'{name}.{len(sent)}')
            path = SCRATCH / 'message'
            path.write_bytes(raw)
            command = client(path, 'box@postfix.test')
            if command:
                done = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, timeout=240)
                equal(done.returncode, 0, f'{name}, {content}: {done.stdout}')
            sent.append(raw)
    # These come with contents of their own.
    source = subprocess.run(['/usr/sbin/smtp-source', '-s', '5', '-m', '200', '-l', '5000', '-f', 'source@sender.test',
                             '-t', 'box@postfix.test', '127.0.0.1:25'], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, timeout=240)
    equal(source.returncode, 0, f'smtp-source: {source.stdout}')
    eventually(lambda: len(postfix.stored()) >= before + len(sent) + 200, 60, 'what clients sent is at Postfix')
    stored = [m for m in postfix.stored() if b'Message-ID: <' in m]
    compare([m for m in stored if re.search(rb'Message-ID: <[A-Za-z]+\.', m)], sent, 'clients in front')
    equal(len(postfix.stored()), before + len(sent) + 200, 'messages at Postfix')
    check(not relay.events('rejected'), f'nothing is refused: {relay.events("rejected")[:2]}')


# ---- behind

def bring_smtp_server():
    """npm's smtp-server, where npm is there to bring it; fetched while there is a network."""
    npm = find('npm')
    if not npm:
        print('smtp-server takes no part: npm is not installed')
        return None
    home = peers.home_of('smtp-server')
    brought = subprocess.run([npm, 'install', '--silent', '--no-audit', '--no-fund', 'smtp-server@3'], cwd=home,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    if brought.returncode != 0:
        print(f'smtp-server takes no part: npm does not bring it: {brought.stdout[-300:]}')
        return None
    return home


class SmtpServer:
    """It stores what it gets."""

    def __init__(self, home, address):
        self.box = home / 'box'
        self.box.mkdir()
        (home / 'server.js').write_text(f'''
const {{SMTPServer}} = require("smtp-server");
let count = 0;
new SMTPServer({{disabledCommands: ["AUTH", "STARTTLS"], onData(stream, session, done) {{
  const file = require("fs").createWriteStream("{self.box}/" + (++count));
  stream.pipe(file);
  file.on("finish", () => done());
}}}}).listen(25, "{address}");
''')
        process = spawn([find('node') or find('nodejs'), home / 'server.js'], 'smtp-server', cwd=home)
        wait_for_greeting(25, 120, lambda: process.poll() is None, address)

    def stored(self):
        return [f.read_bytes() for f in self.box.iterdir()]


def servers_behind(relay, smtp_server):
    postfix = peers.Postfix(BEHIND['postfix.test'], 'postfix.test')
    exim = peers.Exim(BEHIND['exim.test'], 'exim.test')
    # OpenSMTPD hands on to a Postfix of its own, which stores.
    after = peers.Postfix(AFTER_OPENSMTPD, 'opensmtpd.test', name='postfix-after-opensmtpd')
    peers.OpenSmtpd(BEHIND['opensmtpd.test'], (AFTER_OPENSMTPD, 25))
    servers = {'postfix.test': postfix, 'exim.test': exim, 'opensmtpd.test': after,
               'aiosmtpd.test': peers.Aiosmtpd(BEHIND['aiosmtpd.test']),
               'smtp-sink.test': peers.SmtpSink(BEHIND['smtp-sink.test'])}
    if smtp_server:
        servers['smtp-server.test'] = SmtpServer(smtp_server, BEHIND['smtp-server.test'])
    sent = collections.defaultdict(list)
    for domain in servers:
        for number, content in enumerate(CONTENTS):
            raw = message(content, f'box@{domain}', f'{number}.{domain}')
            sent[domain].append(raw)
            with smtplib.SMTP('127.0.0.1', 25, local_hostname='client.test') as client:
                refused = client.sendmail('a@sender.test', [f'box@{domain}', f'nobody@{domain}']
                                          if domain in ('postfix.test', 'exim.test') else [f'box@{domain}'], raw)
                equal(refused, {}, domain)
    for domain, server in servers.items():
        eventually(lambda: len(server.stored()) >= len(CONTENTS), 60, f'mail arrives at {domain}')
    for domain, server in servers.items():
        compare(server.stored(), sent[domain], domain)
    bounced = eventually(lambda: len(relay.events('bounced')) == 2 * len(CONTENTS) and relay.events('bounced'), 20,
                         'unknown users bounce')
    equal({e['recipient'] for e in bounced}, {'nobody@postfix.test', 'nobody@exim.test'}, 'who bounces')
    equal({e['enhanced_status'] for e in bounced if 'postfix' in e['recipient']}, {'5.1.1'}, 'as Postfix said')
    return postfix


def test(smtp_server):
    for address in (*BEHIND.values(), AFTER_OPENSMTPD, POSTFIX_IN_FRONT, EXIM_IN_FRONT):
        peers.add_address(address)
    zone = '\n'.join(f'{d.split(".")[0]} MX 10 mx.{d}.\nmx.{d}. A {a}' for d, a in BEHIND.items())
    server = dns({'test': zone}, port=53)
    relay = Relay('--dns-server', server, '--reports', 'none', '--connect-rate', '100/s', '--relay-from', '127.0.0.0/8',
                  '--relay-from', '45.0.1.0/24', port=25).start()
    postfix = servers_behind(relay, smtp_server)
    clients_in_front(relay, postfix)
    relay.stop()
    for line in log_of('relay').splitlines():
        check(' error ' not in line, line)


if __name__ == '__main__':
    need('millrace', 'nsd', 'swaks', 'curl', 'msmtp')
    for path in (peers.POSTFIX, peers.EXIM, peers.SMTPD):
        if not path.exists():
            skip(f'{path} is not there: tools/peers brings it')
    fetched = bring_smtp_server()
    isolate()
    run(lambda: test(fetched))
