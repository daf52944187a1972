#!/usr/bin/env python3
"""AUTH with the programs of others. As clients: swaks, curl, Python's smtplib, nodemailer, gsasl (SCRAM, bound to the
connection and not), Postfix. As smarthosts: aiosmtpd and a second Millrace. And what an account may do, reloads, guesses."""
import base64
import json
import pathlib
import signal
import smtplib
import socket
import ssl
import subprocess
import threading

import peers
from harness import (BUILD, SCRATCH, Relay, certificate, check, dns, equal, eventually, find, isolate, log_of, need, run, sink, spawn,
                     wait_for_greeting)

PASSWORD = 'correct horse, battery'
ACCOUNTS = SCRATCH / 'accounts.toml'


def passwd(account, password):
    done = subprocess.run([BUILD / 'millracectl', 'passwd', account, '--credentials', ACCOUNTS], input=password + '\n',
                          capture_output=True, text=True)
    equal(done.returncode, 0, f'millracectl passwd: {done.stderr}')


def control(relay, *words):
    done = subprocess.run([BUILD / 'millracectl', '--socket', relay.spool / 'admin.sock', *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def swaks(*options, port=2500):
    return subprocess.run([find('swaks'), '--server', f'127.0.0.1:{port}', '--from', 'a@sender.test', '--to', 'b@receiver.test',
                           '--auth-hide-password', *options], capture_output=True, text=True, timeout=120)


def with_swaks():
    for mechanism in ('PLAIN', 'LOGIN'):
        for how in (['--tls'], ['--tls-on-connect']):
            done = swaks('--auth', mechanism, '--auth-user', 'joe', '--auth-password', PASSWORD, *how,
                         port=2501 if how == ['--tls-on-connect'] else 2500)
            equal(done.returncode, 0, f'swaks {mechanism} {how}: {done.stdout}')
    check('535 5.7.8' in swaks('--auth', 'PLAIN', '--auth-user', 'joe', '--auth-password', 'wrong', '--tls').stdout, 'a wrong password')
    check('530 5.7.0' in swaks('--tls').stdout, 'mail without authentication')
    in_the_clear = swaks('--auth', 'PLAIN', '--auth-user', 'joe', '--auth-password', PASSWORD).stdout
    check('250-AUTH' not in in_the_clear and '235' not in in_the_clear, f'AUTH in the clear: {in_the_clear}')
    return 4


def with_curl():
    text = SCRATCH / 'curl.txt'
    text.write_text('Subject: by curl\r\n\r\nhello\r\n')
    sent = 0
    for options in (['--ssl-reqd', 'smtp://127.0.0.1:2500'], ['smtps://127.0.0.1:2501'],
                    ['--login-options', 'AUTH=LOGIN', 'smtps://127.0.0.1:2501']):
        done = subprocess.run([find('curl'), '--silent', '--show-error', '--insecure', '--mail-from', 'a@sender.test', '--mail-rcpt',
                               'b@receiver.test', '--user', f'joe:{PASSWORD}', '--upload-file', text, *options],
                              capture_output=True, text=True, timeout=120)
        equal(done.returncode, 0, f'curl {options}: {done.stderr}')
        sent += 1
    return sent


def with_smtplib():
    context = ssl.create_default_context(cafile=SCRATCH / 'mine.pem')
    for mechanism in ('auth_plain', 'auth_login'):
        client = smtplib.SMTP('127.0.0.1', 2500)
        client.starttls(context=context)
        client.ehlo()
        client.user, client.password = 'joe', PASSWORD
        name = mechanism.removeprefix('auth_').upper()
        equal(client.auth(name, getattr(client, mechanism))[0], 235, f'smtplib {name}')
        client.sendmail('a@sender.test', ['b@receiver.test'], b'Subject: by smtplib\r\n\r\nhello\r\n')
        client.quit()
    return 2


def with_nodemailer():
    if not find('node') or not pathlib.Path('/usr/share/nodejs/nodemailer').exists():
        return 0
    script = """
const mailer = require('/usr/share/nodejs/nodemailer');
const transport = mailer.createTransport({host: '127.0.0.1', port: 2500, requireTLS: true, tls: {rejectUnauthorized: false},
  auth: {user: 'joe', pass: process.argv[1]}});
transport.sendMail({from: 'a@sender.test', to: 'b@receiver.test', subject: 'by nodemailer', text: 'hello'})
  .then(() => process.exit(0), (problem) => { console.log(problem); process.exit(1); });
"""
    done = subprocess.run([find('node'), '-e', script, PASSWORD], capture_output=True, text=True, timeout=120)
    equal(done.returncode, 0, f'nodemailer: {done.stdout}{done.stderr}')
    return 1


def shim(port):
    """gsasl says STARTTLS without the EHLO that has to come first; this says it in its place. What follows passes
    through as it is, so that the two ends of TLS, and what binds to it, stay the client's and the relay's."""
    listener = socket.create_server(('127.0.0.1', 0))

    def pump(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve():
        client, _ = listener.accept()
        server = socket.create_connection(('127.0.0.1', port))
        heard = b''
        while not heard.endswith(b'\r\n'):
            heard += server.recv(4096)
        server.sendall(b'EHLO gsasl.test\r\n')
        said = b''
        while not any(line[3:4] == b' ' for line in said.split(b'\r\n')[:-1]):
            said += server.recv(4096)
        client.sendall(heard)
        threads = [threading.Thread(target=pump, args=pair, daemon=True) for pair in ((client, server), (server, client))]
        for thread in threads:
            thread.start()
    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def with_gsasl():
    for mechanism in ('SCRAM-SHA-256', 'SCRAM-SHA-256-PLUS', 'PLAIN', 'LOGIN'):
        for password, good in ((PASSWORD, True), ('wrong', False)):
            if mechanism in ('PLAIN', 'LOGIN') and not good:
                continue
            done = subprocess.run([find('gsasl'), '--smtp', '--mechanism', mechanism, '--authentication-id', 'joe', '--password',
                                   password, '--starttls', '--x509-ca-file=', '--connect', f'127.0.0.1:{shim(2500)}',
                                   # It would say that it could have bound, which is not believed where -PLUS is offered.
                                   *([] if mechanism.endswith('-PLUS') else ['--no-cb'])],
                                  capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
            said = done.stdout + done.stderr
            equal('235 2.7.0' in said, good, f'gsasl {mechanism} with the {"right" if good else "wrong"} password: {said}')


def what_an_account_may(relay):
    session = smtplib.SMTP_SSL('127.0.0.1', 2501, context=ssl._create_unverified_context())
    session.login('bounded', PASSWORD)
    equal(session.mail('a@elsewhere.test')[0], 553, 'a sender that the account may not use')
    for number in range(3):
        equal(session.mail('a@sender.test')[0], 250, 'MAIL')
        equal(session.rcpt('b@receiver.test')[0], 250, f'recipient {number}')
        equal(session.data(b'From: a@sender.test\r\nSubject: counted\r\n\r\nhello\r\n')[0], 250, 'data')
    session.mail('a@sender.test')
    code, text = session.rcpt('b@receiver.test')
    equal(code, 452, f'past the budget: {text}')
    check(b'more from 20' in text, f'the time is said: {text}')
    session.rset()

    equal(control(relay, 'account', 'freeze', 'joe')[0], 0, 'freeze')
    check('450 4.7.0' in swaks('--auth', 'PLAIN', '--auth-user', 'joe', '--auth-password', PASSWORD, '--tls').stdout, 'frozen')
    check('joe: by the operator' in control(relay, 'account', 'list')[1], 'the list')
    equal([e['account'] for e in relay.events('held')], ['joe'], 'one event')
    relay.stop()
    relay.start()
    check('450 4.7.0' in swaks('--auth', 'PLAIN', '--auth-user', 'joe', '--auth-password', PASSWORD, '--tls').stdout, 'frozen after a restart')
    equal(control(relay, 'account', 'unfreeze', 'joe')[0], 0, 'unfreeze')
    equal(control(relay, 'account', 'unfreeze', 'joe')[0], 1, 'unfreeze what is not frozen')
    session = smtplib.SMTP_SSL('127.0.0.1', 2501, context=ssl._create_unverified_context())
    session.login('bounded', PASSWORD)
    session.mail('a@sender.test')
    equal(session.rcpt('b@receiver.test')[0], 452, 'the budget survives a restart')
    session.close()
    return 3


def reloads(relay):
    good = ACCOUNTS.read_text()
    ACCOUNTS.write_text(good + '\n[account.new]\npasword = "x"\n')
    relay.process.send_signal(signal.SIGHUP)
    eventually(lambda: "unknown key 'pasword'; did you mean password?" in log_of(relay.name), 30, 'the error names the key')
    equal(swaks('--auth', 'PLAIN', '--auth-user', 'joe', '--auth-password', PASSWORD, '--tls').returncode, 0, 'the old accounts stay')
    ACCOUNTS.write_text(good)
    passwd('joe', 'another one')
    relay.process.send_signal(signal.SIGHUP)
    eventually(lambda: 'configuration reloaded' in log_of(relay.name), 30, 'reloaded')
    eventually(lambda: swaks('--auth', 'PLAIN', '--auth-user', 'joe', '--auth-password', 'another one', '--tls').returncode == 0, 60, 'the new password')
    check('535' in swaks('--auth', 'LOGIN', '--auth-user', 'joe', '--auth-password', PASSWORD, '--tls').stdout, 'the old password')
    passwd('joe', PASSWORD)
    relay.process.send_signal(signal.SIGHUP)
    return 2


def no_secret_is_told(relay):
    for path in (relay.events_file, SCRATCH / f'{relay.name}.log', *relay.spool.rglob('*')):
        if not path.is_file():
            continue
        content = path.read_bytes()
        for secret in (PASSWORD.encode(), base64.b64encode(PASSWORD.encode()), base64.b64encode(b'\0joe\0' + PASSWORD.encode())):
            check(secret not in content, f'{path} holds a password')
    failures = [e for e in relay.events('rejected') if e.get('stage') == 'auth']
    check(failures and all(e['code'] == 535 and e['account'] for e in failures), f'failed authentications: {failures[:2]}')
    status = json.loads(control(relay, 'status', '--json')[1])
    check(status['auth']['succeeded'] > 0, f'counted: {status["auth"]}')


def postfix_in_front(mine):
    peers.add_address('45.0.2.2')
    passwords = SCRATCH / 'sasl_passwd'
    passwords.write_text(f'[127.0.0.1]:2500 joe:{PASSWORD}\n')
    peers.Postfix('45.0.2.2', domain='front.test', relayhost=('127.0.0.1', 2500), name='front',
                  settings='smtp_tls_security_level = encrypt\nsmtp_sasl_auth_enable = yes\nsmtp_sasl_security_options = noanonymous\n'
                           f'smtp_sasl_password_maps = texthash:{passwords}\n')
    for number in range(3):
        subprocess.run([find('swaks'), '--server', '45.0.2.2:25', '--from', 'a@sender.test', '--to', 'b@receiver.test',
                        '--body', f'number {number}'], check=True, capture_output=True, timeout=60)
    return 3


AIOSMTPD = """
import asyncio, ssl, sys
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import AuthResult
chain, key, box, user, password = sys.argv[1:]
def authenticate(server, session, envelope, mechanism, data):
    good = (data.login, data.password) == (user.encode(), password.encode())
    return AuthResult(success=good, auth_data=data if good else None, handled=False)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(chain, key)
Controller(Mailbox(box), hostname='45.0.2.1', port=25, tls_context=context, require_starttls=True, auth_required=True,
           authenticator=authenticate).start()
asyncio.new_event_loop().run_forever()
"""


def to_smarthosts():
    """aiosmtpd, which has PLAIN and LOGIN, and a second Millrace, which has all."""
    for address in ('45.0.2.1', '45.0.2.3'):
        peers.add_address(address)
    theirs = certificate('smart', 'smart.test', 'DNS:localhost', 'IP:127.0.0.1')
    server = dns({'test': 'smart A 45.0.2.1\nours A 45.0.2.3\n'})
    box = SCRATCH / 'box'
    other = spawn(['/usr/bin/python3', '-c', AIOSMTPD, theirs[0], theirs[1], box, 'relay@receiver.test', PASSWORD], 'smart')
    wait_for_greeting(25, 60, lambda: other.poll() is None, '45.0.2.1')
    ours_certificate = certificate('ours', 'ours.test', 'DNS:localhost', 'IP:127.0.0.1')
    passwd('relay@receiver.test', PASSWORD)
    receiver = sink()
    ours = Relay('--listen', '45.0.2.3:25', '--tls-certificate', ours_certificate[0], '--tls-key', ours_certificate[1], '--credentials',
                 ACCOUNTS, '--relay-from', '192.0.2.1', '--smarthost', '127.0.0.1:2600', port=2700, name='ours').start()
    authorities = SCRATCH / 'authorities.pem'
    authorities.write_bytes(theirs[0].read_bytes() + ours_certificate[0].read_bytes())
    hops = SCRATCH / 'hops.toml'

    def relay_with(name, host, password, more='', ca=authorities):
        hops.write_text(f'[next-hop."{host}"]\nuser = "relay@receiver.test"\npassword = "{password}"\n{more}\n')
        relay = Relay('--smarthost', f'{host}:25', '--next-hop-credentials', hops, '--tls-ca-file', ca, '--dns-server', server,
                      '--hold', '1s', '--drain-timeout', '1s', name=name).start()
        subprocess.run([find('swaks'), '--server', '127.0.0.1:2500', '--from', 'a@sender.test', '--to', 'box@receiver.test'], check=True,
                       capture_output=True, timeout=60)
        return relay

    for host, mechanism in (('smart.test', 'PLAIN'), ('smart.test', 'LOGIN'), ('ours.test', 'SCRAM-SHA-256'),
                            ('ours.test', 'SCRAM-SHA-256-PLUS'), ('ours.test', 'LOGIN')):
        relay = relay_with(f'to-{host}-{mechanism.lower()}', host, PASSWORD, f'mechanisms = ["{mechanism}"]')
        eventually(lambda: len(relay.events('delivered')) == 1, 60, f'{host} has let us in by {mechanism}')
        relay.stop()
    equal(len(list((box / 'new').iterdir())), 2, 'what aiosmtpd has stored')
    equal([e['account'] for e in ours.events('received')], 3 * ['relay@receiver.test'], 'whose mail it is')
    # The wrong password, and smarthosts that cannot be verified: mail waits, and nothing is said.
    for host in ('smart.test', 'ours.test'):
        relay = relay_with(f'wrong-{host}', host, 'wrong')
        event = eventually(lambda: [e for e in relay.events('queue') if e.get('stage') == 'auth'], 60, 'a refusal is an event')[0]
        equal(event['code'], 535, f'{event}')
        check('does not let us in' in log_of(f'wrong-{host}'), 'and a line in the log')
        equal([e for e in relay.events() if e['type'] in ('bounced', 'deferred')], [], 'the mail is not blamed')
        relay.stop()
        relay = relay_with(f'unverified-{host}', host, PASSWORD, ca='/etc/ssl/certs/ca-certificates.crt')
        event = eventually(lambda: relay.events('queue'), 60, 'an unverified smarthost is an event')[0]
        equal(event['stage'], 'starttls', f'{event}')
        relay.stop()
    equal(len(list((box / 'new').iterdir())), 2, 'nothing more has come')
    ours.stop()
    equal(receiver.finish()['messages'], 3, 'what came through the second relay')


def test():
    mine = certificate('mine', 'relay.test', 'DNS:localhost', 'IP:127.0.0.1')
    passwd('joe', PASSWORD)
    passwd('bounded', PASSWORD)
    ACCOUNTS.write_text(ACCOUNTS.read_text() + 'senders = ["sender.test"]\nrecipients-per-hour = 3\n')
    receiver = sink()
    relay = Relay('--listen-tls', '127.0.0.1:2501', '--tls-certificate', mine[0], '--tls-key', mine[1], '--credentials', ACCOUNTS,
                  '--relay-from', '192.0.2.1', '--smarthost', '127.0.0.1:2600').start()
    sent = with_swaks() + with_curl() + with_smtplib() + with_nodemailer()
    if find('gsasl'):
        with_gsasl()
    sent += what_an_account_may(relay) + reloads(relay)
    if peers.POSTFIX.exists():
        sent += postfix_in_front(mine)
    delivered = eventually(lambda: len(relay.events('delivered')) >= sent and relay.events('delivered'), 60, f'{sent} messages')
    equal({e.get('account') for e in delivered}, {'joe', 'bounded'}, 'the accounts of what was delivered')
    no_secret_is_told(relay)
    relay.stop()
    equal(receiver.finish()['messages'], sent, 'what arrived')
    to_smarthosts()


if __name__ == '__main__':
    need('millrace', 'millracectl', 'millrace-sink', 'openssl', 'swaks', 'curl', 'ip')
    isolate()
    run(test)
