"""Mail servers and clients of others that the system tests put before and behind the relay, each with a
configuration of its own under SCRATCH."""
import os
import pathlib
import pwd
import re
import shutil
import subprocess

from harness import ROOT, SCRATCH, check, equal, find, spawn, wait_for_greeting

UNPACKED = ROOT / 'build/peers'  # by tools/peers
POSTFIX = pathlib.Path('/usr/lib/postfix/sbin/master')
EXIM = UNPACKED / 'exim/usr/sbin/exim4'
SMTPD = UNPACKED / 'opensmtpd/usr/sbin/smtpd'


def add_address(address):
    subprocess.run([find('ip'), 'address', 'add', f'{address}/32', 'dev', 'lo'], check=True)


def home_of(name):
    os.chmod(SCRATCH, 0o755)
    home = SCRATCH / name
    home.mkdir()
    return home


def maildir(path):
    """The messages of a Maildir as bytes, with CR LF."""
    new = path / 'new'
    return [f.read_bytes().replace(b'\r\n', b'\n').replace(b'\n', b'\r\n') for f in new.iterdir()] if new.exists() else []


class Postfix:
    """Stores what it gets for its domain in a Maildir; or, with `relayhost`, passes everything on to it."""

    def __init__(self, address, domain='receiver.test', port=25, relayhost=None, name='postfix', settings=''):
        self.home = home = home_of(name)
        owner = pwd.getpwnam('nobody')
        for folder in ('config', 'queue', 'data', 'mail'):
            (home / folder).mkdir(parents=True)
        shutil.chown(home / 'data', 'postfix')
        shutil.chown(home / 'mail', 'nobody')
        (home / 'recipients').write_text('')
        where = f'relayhost = [{relayhost[0]}]:{relayhost[1]}\n' if relayhost else f'''
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = inline:{{ box@{domain}=box/ }}
virtual_uid_maps = static:{owner.pw_uid}
virtual_gid_maps = static:{owner.pw_gid}
virtual_minimum_uid = 1
'''
        (home / 'config/main.cf').write_text(f'''
compatibility_level = 3.6
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
queue_directory = {home}/queue
data_directory = {home}/data
maillog_file = {SCRATCH}/{name}-mail.log
maillog_file_prefixes = {SCRATCH}
myhostname = {domain}
mydestination =
alias_maps =
inet_interfaces = {address}
inet_protocols = ipv4
mynetworks = 127.0.0.0/8, {address}
smtp_dns_support_level = disabled
{where}{settings}''')
        (home / 'config/master.cf').write_text(f'''
{address}:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
virtual unix - n n - - virtual
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000 1 tlsmgr
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
''')
        self.process = spawn(['/usr/sbin/postfix', '-c', home / 'config', 'start-fg'], name)
        wait_for_greeting(port, 120, lambda: self.process.poll() is None, address)

    def stored(self):
        return maildir(self.home / 'mail/box')


class Exim:
    """Stores what it gets for its domain in a Maildir; or, with `relayhost`, passes everything on to it."""

    def __init__(self, address, domain, port=25, relayhost=None, name='exim', tls=None):
        """`tls`: certificate and key; then nothing is sent in the clear, either."""
        self.home = home = home_of(name)
        self.domain = domain
        for folder in ('spool', 'log', 'mail'):
            (home / folder).mkdir()
            shutil.chown(home / folder, 'Debian-exim', 'Debian-exim')
        route = f'''
out:
  driver = manualroute
  route_list = * {relayhost[0]}
  transport = smtp
  self = send
''' if relayhost else f'''
box:
  driver = accept
  domains = {domain}
  local_parts = box
  transport = maildir
'''
        (home / 'exim.conf').write_text(f'''
primary_hostname = {domain}
exim_path = {EXIM}
spool_directory = {home}/spool
log_file_path = {home}/log/%s.log
local_interfaces = {address}
daemon_smtp_ports = {port}
{f"""tls_advertise_hosts = *
tls_certificate = {tls[0]}
tls_privatekey = {tls[1]}""" if tls else 'tls_advertise_hosts ='}
host_lookup =
rfc1413_hosts =
hostlist senders = 127.0.0.0/8 : {address}
acl_smtp_rcpt = check_rcpt
acl_smtp_data = accept
chunking_advertise_hosts = *
smtputf8_advertise_hosts =
dsn_advertise_hosts = *
queue_only = false
keep_environment =
deliver_drop_privilege
begin acl
check_rcpt:
  accept domains = {domain}
         verify = recipient
  accept hosts = +senders
         condition = {'yes' if relayhost else 'no'}
  deny message = 5.1.1 no such user
begin routers
{route}
begin transports
maildir:
  driver = appendfile
  maildir_format
  directory = {home}/mail/box
  create_directory
smtp:
  driver = smtp
  port = {relayhost[1] if relayhost else 25}
  allow_localhost
  hosts_try_chunking = *
  {'hosts_require_tls = *' if tls else ''}
begin retry
* * F,1m,1s
''')
        self.process = spawn([EXIM, '-bdf', '-q1s', '-C', home / 'exim.conf'], name)
        wait_for_greeting(port, 120, lambda: self.process.poll() is None, address)

    def stored(self):
        return maildir(self.home / 'mail/box')


class OpenSmtpd:
    """Passes what it gets on to the next hop."""

    def __init__(self, address, relayhost, name='opensmtpd'):
        home = home_of(name)
        for folder in ('/var/lib/opensmtpd/empty', '/var/spool/smtpd'):
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        os.chmod('/var/spool/smtpd', 0o711)
        (home / 'smtpd.conf').write_text(f'''
listen on {address} port 25
action out relay host smtp://{relayhost[0]}:{relayhost[1]}
match from any for any action out
''')
        os.chmod(home / 'smtpd.conf', 0o600)
        self.process = spawn([SMTPD, '-d', '-f', home / 'smtpd.conf'], name)
        wait_for_greeting(25, 120, lambda: self.process.poll() is None, address)


class Aiosmtpd:
    """Stores what it gets, whoever it is for."""

    def __init__(self, address, name='aiosmtpd'):
        home = home_of(name)
        self.box = home / 'box'
        self.process = spawn(['/usr/bin/python3', '-m', 'aiosmtpd', '-n', '-c', 'aiosmtpd.handlers.Mailbox', self.box,
                              '-l', f'{address}:25'], name)
        wait_for_greeting(25, 120, lambda: self.process.poll() is None, address)

    def stored(self):
        # It adds three headers below those of the message.
        return [re.sub(rb'X-(?:Peer|MailFrom|RcptTo): .*\r\n', b'', m) for m in maildir(self.box)]


class SmtpSink:
    """Postfix's smtp-sink, which stores what it gets, with headers of its own on top."""

    def __init__(self, address, name='smtp-sink'):
        self.home = home_of(name)
        shutil.chown(self.home, 'nobody')
        self.process = spawn(['/usr/sbin/smtp-sink', '-u', 'nobody', '-d', f'{self.home}/%M.', f'{address}:25', '100'],
                             name)
        wait_for_greeting(25, 120, lambda: self.process.poll() is None, address)

    def stored(self):
        return [f.read_bytes().replace(b'\n', b'\r\n') for f in self.home.iterdir()]
