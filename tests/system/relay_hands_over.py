#!/usr/bin/env python3
"""`deliver` of the shaping file, confined and as a user of its own: what is discarded reaches nobody and is told of as such;
each message for a folder is a whole file there; Dovecot gets mail by LMTP over its Unix socket and over TCP, and each
recipient has the outcome that is its own."""
import os
import pwd
import shutil

from harness import (SCRATCH, SLOWER, Relay, check, equal, eventually, find, isolate, load, log_of, need, run, sink,
                     spawn, wait_for_greeting)
from peers import home_of, maildir

MESSAGES = 400 // SLOWER
USER = 'nobody'


def dovecot():
    home = home_of('dovecot')
    (home / 'mail').mkdir()
    shutil.chown(home / 'mail', USER)
    group = pwd.getpwnam(USER).pw_gid
    (home / 'users').write_text(''.join(f'{name}::{pwd.getpwnam(USER).pw_uid}:{group}::{home}/mail/{name}::{more}\n'
                                        for name, more in (('one', ''), ('two', ''), ('full', 'userdb_quota_rule=*:bytes=10'))))
    (home / 'conf').write_text(f'''
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/log
protocols = lmtp
ssl = no
auth_username_format = %n
mail_location = maildir:~/Maildir
mail_plugins = quota
first_valid_uid = 1
first_valid_gid = 1
plugin {{
  quota = maildir:user
  quota_exceeded_message = mailbox is full
}}
passdb {{
  driver = passwd-file
  args = {home}/users
}}
userdb {{
  driver = passwd-file
  args = {home}/users
}}
service lmtp {{
  unix_listener {home}/lmtp {{
    mode = 0666
  }}
  inet_listener lmtp {{
    address = 127.0.0.1
    port = 2424
  }}
}}
''')
    process = spawn([find('dovecot'), '-F', '-c', home / 'conf'], 'dovecot')
    eventually((home / 'lmtp').exists, 20, 'the socket of dovecot')
    wait_for_greeting(2424, 120, lambda: process.poll() is None)
    return home


def mails(home, name):
    return maildir(home / 'mail' / name / 'Maildir')


def test():
    home = dovecot()
    folder = SCRATCH / 'shadow'
    folder.mkdir()
    shutil.chown(folder, USER)
    shaping = SCRATCH / 'shaping.toml'
    shaping.write_text(f'''
[domain."*"]
deliver = "discard"
[domain."no.test"]
deliver = "discard 550 5.1.1 no such user"
[domain."file.test"]
deliver = "file:{folder}"
[domain."unix.test"]
deliver = "lmtp:{home}/lmtp"
[domain."tcp.test"]
deliver = "lmtp://127.0.0.1:2424"
''')
    receiver = sink()  # that nothing may reach
    relay = Relay('--smarthost', '127.0.0.1:2600', '--user', USER, '--shaping', shaping, '--reports', 'none',
                  '--spool-reserve', '4M')
    logs = SCRATCH / 'logs'
    logs.mkdir()
    shutil.chown(logs, USER)
    relay.events_file = logs / 'events'
    relay.start()
    check('not confined' not in log_of('relay'), log_of('relay'))

    def outcomes(domain, kind):
        return [e for e in relay.events(kind) if e.get('recipient', '').endswith(f'@{domain}')]

    for domain in ('any.test', 'no.test', 'file.test'):
        load('--messages', MESSAGES, '--connections', 10, '--domains', domain)
    eventually(lambda: len(outcomes('any.test', 'delivered')) == MESSAGES, 20, 'discarded mail')
    equal({(e['transport'], e['code']) for e in outcomes('any.test', 'delivered')}, {('discard', 250)}, 'how it went')
    eventually(lambda: len(outcomes('no.test', 'bounced')) == MESSAGES, 20, 'refused mail')
    eventually(lambda: len(outcomes('file.test', 'delivered')) == MESSAGES, 20, 'mail in files')
    files = sorted(folder.iterdir())
    equal(len(files), MESSAGES, f'files, and nothing else, in {folder}')
    check(all(f.suffix == '.eml' and b'@file.test\r\n' in f.read_bytes().split(b'\r\nDelivered-To: ')[1] for f in files), 'what they hold')

    # Of three recipients one has no room: by LMTP the others keep theirs.
    for domain in ('unix.test', 'tcp.test'):
        for name in ('one', 'two', 'full'):
            shutil.rmtree(home / 'mail' / name, ignore_errors=True)
        send(f'one@{domain}', f'two@{domain}', f'full@{domain}', f'nobody-there@{domain}')
        eventually(lambda: len(outcomes(domain, None)) >= 4, 20, f'outcomes of {domain}')
        equal(sorted(e['recipient'].split('@')[0] for e in outcomes(domain, 'delivered')), ['one', 'two'], domain)
        equal({e['transport'] for e in outcomes(domain, 'delivered')}, {'lmtp'}, domain)
        refused = {e['recipient'].split('@')[0]: e for e in outcomes(domain, 'bounced') + outcomes(domain, 'deferred')}
        equal(sorted(refused), ['full', 'nobody-there'], domain)
        equal(refused['full']['stage'], 'end_of_data', f'{domain}: {refused["full"]}')
        equal(refused['nobody-there']['stage'], 'rcpt', f'{domain}: {refused["nobody-there"]}')
        for name in ('one', 'two'):
            equal(len(mails(home, name)), 1, f'mail of {name}')
            check(b'Subject: three\r\n' in mails(home, name)[0] and b'\r\n.dot\r\n' in mails(home, name)[0], mails(home, name)[0])
        equal(mails(home, 'full'), [], 'mail of full')

    relay.stop()
    equal(receiver.finish()['messages'], 0, 'messages that slipped through')


def send(*recipients):
    import smtplib
    with smtplib.SMTP('127.0.0.1', 2500) as client:
        client.sendmail('sender@client.test', recipients, 'Subject: three\r\n\r\n.dot\r\n')


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink', 'dovecot')
    isolate()
    run(test)
