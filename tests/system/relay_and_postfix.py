#!/usr/bin/env python3
"""Between two programs of others: swaks sends, Postfix receives. What Postfix stores is what swaks sent,
with the relay's own Received on top of it."""
import os
import pathlib
import pwd
import shutil
import subprocess

from harness import (SCRATCH, Relay, check, end, equal, eventually, find, isolate, log_of, need, run, skip,
                     spawn, wait_for_greeting)

CONTENTS = {
    'dots': '.\r\n..\r\n. x\r\n...three\r\nlast\r\n',
    'eight-bit': 'Grüße aus Köln: ½ → ¾\r\n',
    'empty lines': '\r\n\r\n\r\n.\r\n\r\n',
    'long line': 'x' * 998 + '\r\n',
    'many lines': ''.join(f'line {i}\r\n' for i in range(20_000)),
}


def start_postfix():
    os.chmod(SCRATCH, 0o755)
    home = SCRATCH / 'postfix'
    owner = pwd.getpwnam('nobody')
    for folder in ('config', 'queue', 'data', 'mail'):
        (home / folder).mkdir(parents=True)
    shutil.chown(home / 'data', 'postfix')
    shutil.chown(home / 'mail', 'nobody')
    (home / 'config/main.cf').write_text(f'''
compatibility_level = 3.6
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
queue_directory = {home}/queue
data_directory = {home}/data
maillog_file = {home}/maillog
maillog_file_prefixes = {home}
myhostname = receiver.test
mydestination =
alias_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = receiver.test
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:{owner.pw_uid}
virtual_gid_maps = static:{owner.pw_gid}
virtual_minimum_uid = 1
''')
    (home / 'config/master.cf').write_text('''
127.0.0.1:2600 inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
proxymap unix - - n - - proxymap
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
''')
    process = spawn(['/usr/sbin/postfix', '-c', home / 'config', 'start-fg'], 'postfix')
    wait_for_greeting(2600, 30, lambda: process.poll() is None)
    return process, home / 'mail/box/new'


def test():
    postfix, box = start_postfix()
    relay = Relay('--smarthost', '127.0.0.1:2600').start()
    for name, body in CONTENTS.items():
        message = (f'From: <a@sender.test>\r\nTo: <b@receiver.test>\r\nSubject: {name}\r\n'
                   f'Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMessage-ID: <{len(body)}@sender.test>\r\n\r\n{body}')
        data = SCRATCH / 'message'
        data.write_bytes(message.encode())
        before = set(box.iterdir()) if box.exists() else set()
        sent = subprocess.run([find('swaks'), '--server', '127.0.0.1:2500', '--from', 'a@sender.test', '--to',
                               'b@receiver.test', '--data', f'@{data}', '--suppress-data'],
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        equal(sent.returncode, 0, f'{name}: swaks {sent.stdout}')
        check('250 2.0.0 Ok: queued as ' in sent.stdout, f'{name}: reply {sent.stdout}')
        new = eventually(lambda: (set(box.iterdir()) if box.exists() else set()) - before, 20,
                         f'{name} arrives at Postfix')
        stored = next(iter(new)).read_bytes().replace(b'\n', b'\r\n')
        at = stored.index(b'From: <a@sender.test>')
        head = stored[:at].decode()
        check('by relay.test.invalid' in head, f'{name}: the relay adds its Received: {head}')
        # swaks may end the data with one more line end.
        equal(stored[at:].rstrip(b'\r\n'), message.encode().rstrip(b'\r\n'), f'{name}: content')
    relay.stop()
    end(postfix)


if __name__ == '__main__':
    need('millrace', 'swaks')
    if not pathlib.Path('/usr/lib/postfix/sbin/master').exists():
        skip('postfix is not installed')
    isolate()
    run(test)
