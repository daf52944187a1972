#!/usr/bin/env python3
"""Started as root with --user, the relay keeps nothing of root but low ports, reaches its own files only, and
does all of its work: mail over many segments, a configuration replaced as editors do it, log rotation, the
operator's socket. Its programs are built with the compiler's and linker's protections."""
import os
import pathlib
import pwd
import signal
import subprocess
import time

from harness import (BUILD, RELAY, SCRATCH, SLOWER, Relay, check, equal, eventually, find, isolate, load, log_of,
                     need, run, sink)

MESSAGES = 3000 // SLOWER
USER = 'nobody'


def status_of(process):
    lines = pathlib.Path(f'/proc/{process.pid}/status').read_text().splitlines()
    return dict(line.split(':\t', 1) for line in lines if ':\t' in line)


def is_confined():
    account = pwd.getpwnam(USER)
    os.chmod(SCRATCH, 0o755)
    etc, logs = SCRATCH / 'etc', SCRATCH / 'logs'
    etc.mkdir()
    logs.mkdir()
    os.chown(logs, account.pw_uid, account.pw_gid)
    settings = etc / 'millrace.toml'

    def configure(connections):
        # The new file takes the old one's name.
        draft = etc / 'draft'
        draft.write_text(f'destination-connections = {connections}\n')
        draft.rename(settings)
    configure(10)

    ledgers = SCRATCH / 'ledger-1', SCRATCH / 'ledger-2'
    receiver = sink('--ledger', ledgers[0], '--ledger', ledgers[1])
    relay = Relay('--smarthost', '127.0.0.1:2600', '--user', USER, '--config', settings, '--segment-size', '4M',
                  '--max-message-size', '1M', '--spool-reserve', '4M', port=25)
    relay.events_file = logs / 'events'
    relay.start()

    status = status_of(relay.process)
    equal(status['Uid'].split(), [str(account.pw_uid)] * 4, 'user')
    equal(status['Groups'].split(), [str(g) for g in os.getgrouplist(USER, account.pw_gid)], 'groups')
    # CAP_NET_BIND_SERVICE is number 10.
    equal((int(status['CapEff'], 16), int(status['CapPrm'], 16)), (1 << 10, 1 << 10), 'capabilities')
    equal(status['NoNewPrivs'], '1', 'new privileges forbidden')
    eventually(lambda: status_of(relay.process)['Seccomp'] == '2', 5, 'system calls are confined')
    for task in pathlib.Path(f'/proc/{relay.process.pid}/task').iterdir():
        check('Seccomp:\t2' in (task / 'status').read_text(), f'thread {task.name} is confined')
    check('not confined' not in log_of('relay'), log_of('relay'))

    load('--messages', MESSAGES, '--connections', 20, '--ledger', ledgers[0], '--size', 20000, port=25)
    (logs / 'events').rename(logs / 'events.1')
    configure(3)
    relay.process.send_signal(signal.SIGHUP)
    eventually(lambda: 'destination-connections has changed' in log_of('relay'), 10, 'the configuration is read again')
    eventually((logs / 'events').exists, 10, 'a new events file')
    load('--messages', MESSAGES, '--connections', 20, '--ledger', ledgers[1], '--size', 20000, port=25)
    said = subprocess.run([BUILD / 'millracectl', '--socket', relay.spool / 'admin.sock', 'status'], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    equal(said.returncode, 0, said.stdout)

    eventually(lambda: len([e for e in relay.events() if e['type'] == 'delivered']) > 0, 20, 'deliveries in the new file')
    time.sleep(0.5)
    relay.stop()
    # What was confined too far shows as an error.
    for line in log_of('relay').splitlines():
        check(' error ' not in line and 'ermission' not in line, line)
    verdict = receiver.finish()['ledger']
    equal([verdict[fault] for fault in ('missing', 'altered', 'duplicates')], [0, 0, 0], str(verdict))


def is_hardened():
    """Position-independent, no executable stack, relocations read-only from the start, stack guards, checked
    copies, no search path that another could write."""
    for program in (RELAY, BUILD / 'millracectl', BUILD / 'millrace-spool', BUILD / 'libmillrace.so'):
        def readelf(*options):
            return subprocess.run([find('readelf'), '-W', *options, program], text=True, stdout=subprocess.PIPE,
                                  check=True).stdout
        equal('Type:' in readelf('-h') and 'DYN' in readelf('-h'), True, f'{program.name} is position-independent')
        segments = readelf('-l')
        stack = next(line for line in segments.splitlines() if 'GNU_STACK' in line)
        check('RWE' not in stack and ' RW ' in stack, f'{program.name}: stack not executable: {stack}')
        check('GNU_RELRO' in segments, f'{program.name}: read-only relocations')
        dynamic = readelf('-d')
        check('BIND_NOW' in dynamic or 'NOW' in dynamic, f'{program.name}: bound at start')
        check('RPATH' not in dynamic, f'{program.name}: {dynamic}')
        symbols = readelf('--dyn-syms')
        check('__stack_chk_fail' in symbols, f'{program.name}: stack guards')
        check('_chk@' in symbols or '_chk ' in symbols, f'{program.name}: checked copies')


def test():
    is_confined()
    if SLOWER == 1:  # not of a sanitizer's build
        is_hardened()


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink', 'millracectl')
    isolate()
    run(test)
