"""The relays that are compared, each started from nothing in a directory of its own, in the foreground.

A relay takes mail on `port` and hands all of it to 127.0.0.1:sink_port. Each is configured to be as
fast as it can be without giving up what it promises: Postfix keeps its fsync, and limits meant to
protect a public server are lifted. What is left at its default is left on purpose.
"""
import json
import os
import pathlib
import shutil
import socket

from . import machine
from .programs import Broken, free_port, wait_for_greeting


class Relay:
    name = ''
    promise = ''  # what a 250 of it means

    def __init__(self, build, directory, sink_port, reuse, options):
        self.build = build
        self.directory = pathlib.Path(directory)
        self.sink_port = sink_port
        self.reuse = reuse  # False: one message a connection, on both sides
        self.options = options
        self.tls = None  # a programs.Certificate: implicit TLS on both sides
        self.port = free_port()
        self.tree = None

    @staticmethod
    def available(build):
        """A reason why it cannot run here, or None."""
        return None

    def command(self):
        raise NotImplementedError

    def start(self, wrapper=()):
        self.log = open(self.directory / 'log', 'wb')
        self.tree = machine.Tree(self.name.replace(' ', '-'))
        self.tree.start([*wrapper, *self.command()], self.log)
        try:
            wait_for_greeting(self.port, 30, lambda: self.tree.process.poll() is None, tls=self.tls)
        except Broken as problem:
            tail = (self.directory / 'log').read_text(errors='replace')[-600:]
            raise Broken(f'{self.name}: {problem}\n{tail}') from None

    def statistics(self):
        """The relay's own counters, for syncs and body octets copied; {} if it has none."""
        return {}

    def stop(self):
        if self.tree:
            self.tree.stop()
            self.tree = None
            self.log.close()


class NoRelay(Relay):
    name = 'none'
    promise = 'source and sink alone'

    def start(self, wrapper=()):
        self.port = self.sink_port


class HAProxy(Relay):
    name = 'HAProxy'
    promise = 'TCP proxy, stores nothing'

    @staticmethod
    def available(build):
        return None if shutil.which('haproxy', path='/usr/sbin:/usr/bin') else 'haproxy is not installed'

    def command(self):
        # One suite, as Millrace has it with source and sink; sessions towards the sink are resumed by default.
        terminate = originate = ''
        if self.tls:
            terminate = f'ssl crt {self.tls.both} ssl-min-ver TLSv1.3 ciphersuites {self.tls.suite}'
            originate = f'ssl verify none ssl-min-ver TLSv1.3 ciphersuites {self.tls.suite}'
        (self.directory / 'haproxy.cfg').write_text(f'''
global
  maxconn 9000
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen smtp
  bind 127.0.0.1:{self.port} {terminate}
  server sink 127.0.0.1:{self.sink_port} {originate}
''')
        return [shutil.which('haproxy', path='/usr/sbin:/usr/bin'), '-db', '-f',
                str(self.directory / 'haproxy.cfg')]


class Nginx(Relay):
    name = 'nginx'
    promise = 'TCP proxy, stores nothing'
    module = pathlib.Path('/usr/lib/nginx/modules/ngx_stream_module.so')

    @classmethod
    def available(cls, build):
        if not shutil.which('nginx', path='/usr/sbin:/usr/bin') or not cls.module.exists():
            return 'nginx with libnginx-mod-stream is not installed'
        return None

    def command(self):
        (self.directory / 'nginx.conf').write_text(f'''
load_module {self.module};
daemon off;
worker_processes auto;
pid {self.directory}/pid;
error_log stderr;
events {{ worker_connections 20000; }}
stream {{ server {{ listen 127.0.0.1:{self.port}; proxy_pass 127.0.0.1:{self.sink_port}; }} }}
''')
        return [shutil.which('nginx', path='/usr/sbin:/usr/bin'), '-p', str(self.directory), '-c',
                str(self.directory / 'nginx.conf')]


class Postfix(Relay):
    name = 'Postfix'
    promise = 'one file a message, fsync before the 250'
    daemons = '/usr/lib/postfix/sbin'

    @classmethod
    def available(cls, build):
        if os.geteuid() != 0:
            return 'Postfix needs root'
        return None if os.path.exists(f'{cls.daemons}/master') else 'postfix is not installed'

    def command(self):
        os.chmod(self.directory, 0o755)
        config = self.directory / 'config'
        for folder in (config, self.directory / 'queue', self.directory / 'data'):
            folder.mkdir()
        shutil.chown(self.directory / 'data', 'postfix')
        connections = self.options.connections
        (config / 'main.cf').write_text(f'''
compatibility_level = 3.6
command_directory = /usr/sbin
daemon_directory = {self.daemons}
queue_directory = {self.directory}/queue
data_directory = {self.directory}/data
maillog_file = {self.directory}/maillog
maillog_file_prefixes = {self.directory}
myhostname = relay.load.invalid
mydestination =
alias_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
relayhost = [127.0.0.1]:{self.sink_port}
message_size_limit = 52428800
default_process_limit = {max(200, connections + 50)}
smtpd_client_connection_count_limit = 0
smtp_destination_concurrency_limit = {connections}
initial_destination_concurrency = {connections}
in_flow_delay = 0
smtp_connection_cache_on_demand = {'yes' if self.reuse else 'no'}
smtp_connection_cache_destinations = {'$relayhost' if self.reuse else ''}
''')
        if self.tls:
            with open(config / 'main.cf', 'a') as main:
                main.write(f'''
smtpd_tls_wrappermode = yes
smtpd_tls_security_level = encrypt
smtpd_tls_chain_files = {self.tls.both}
smtp_tls_wrappermode = yes
smtp_tls_security_level = encrypt
smtp_tls_connection_reuse = {'yes' if self.reuse else 'no'}
smtp_tls_session_cache_database = btree:$data_directory/smtp_scache
''')
        # The services a relay needs, without chroot.
        (config / 'master.cf').write_text(f'''
127.0.0.1:{self.port} inet n - n - - smtpd
tlsproxy  unix - - n - 0 tlsproxy
pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 300 1 qmgr
tlsmgr    unix - - n 1000? 1 tlsmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
flush     unix n - n 1000? 0 flush
proxymap  unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp      unix - - n - - smtp
relay     unix - - n - - smtp
showq     unix n - n - - showq
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
anvil     unix - - n - 1 anvil
scache    unix - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
''')
        return ['/usr/sbin/postfix', '-c', str(config), 'start-fg']


class Millrace(Relay):
    name = 'Millrace'
    durability = 'disk'
    promise = 'durable before the 250'
    shards = 1
    more = []  # in place of the smarthost, for rows with MX look-ups

    @staticmethod
    def available(build):
        return None if (build / 'millrace').exists() else f'{build}/millrace is not built'

    def statistics(self):
        """Asks the admin socket; what is worth a line a message."""
        try:
            with socket.socket(socket.AF_UNIX) as admin:
                admin.settimeout(5)
                admin.connect(str(self.directory / 'admin.sock'))
                admin.sendall(b'{"command":"status"}\n')
                answer = json.loads(admin.makefile().readline())['result']
        except (OSError, ValueError, KeyError):
            return {}
        found = {key: answer[key] for key in ('syncs', 'body_bytes_copied', 'bytes_written', 'attempts',
                                              'connects', 'bodies_read_back') if key in answer}
        if self.tls:
            found |= {f'{of} {what}': answer[of][what] for of in ('tls_in', 'tls_out') for what in ('handshakes', 'resumed')}
        return found

    def arguments(self):
        """What every use has in common; rows of the bench add to it."""
        listen = ['--listen', f'127.0.0.1:{self.port}']
        if self.tls:
            listen = ['--listen-tls', f'127.0.0.1:{self.port}', '--tls-certificate', str(self.tls.chain), '--tls-key', str(self.tls.key)]
        return [str(self.build / 'millrace'), *listen,
                '--spool', str(self.directory / 'spool'), '--hostname', 'relay.load.invalid',
                '--durability', self.durability, '--shards', str(self.shards),
                '--admin-socket', str(self.directory / 'admin.sock')]

    def command(self):
        (self.directory / 'spool').mkdir(exist_ok=True)
        command = self.arguments() + self.more
        if not self.more:
            command += ['--smarthost', f'{"smtps://" if self.tls else ""}127.0.0.1:{self.sink_port}', '--destination-connections',
                        str(self.options.outbound)]
        if not self.reuse:
            command += ['--messages-per-connection', '1']
        return command


def millrace(durability='disk', shards=1, more=()):
    label = f'Millrace {durability}' + (f' {shards} shards' if shards > 1 else '')
    return type('Millrace', (Millrace,), {
        'name': label, 'durability': durability, 'shards': shards, 'more': [str(word) for word in more],
        'promise': 'durable before the 250' if durability == 'disk' else 'in memory only'})


ALL = [NoRelay, HAProxy, Nginx, Postfix,
       millrace('disk', 1), millrace('disk', 2), millrace('memory', 1), millrace('memory', 2)]
