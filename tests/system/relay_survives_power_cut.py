#!/usr/bin/env python3
"""Power cuts on a real file system: ext4 on a loop device is shut down in the middle of the load by its own ioctl,
so that nothing that was not synced reaches the device, not even its journal. The relay acknowledges nothing any
more; after the file system's recovery and its own, no message that was answered with a 250 is missing or altered."""
import fcntl
import os
import random
import shutil
import struct
import subprocess
import time

from harness import (LONG, SCRATCH, SLOWER, Relay, equal, eventually, find, finish_load, isolate, log_of, need,
                     run, sink, skip, start_load)

CUTS = 60 if LONG else 8
MESSAGES = (100_000 if LONG else 15_000) // SLOWER
IMAGE, MOUNT = SCRATCH / 'disk', SCRATCH / 'mounted'
# EXT4_IOC_SHUTDOWN is _IOR('X', 125, __u32); 2 means that not even the journal is flushed.
SHUTDOWN, NO_LOG_FLUSH = 0x80000000 | 4 << 16 | ord('X') << 8 | 125, 2


def make_disk():
    with open(IMAGE, 'wb') as image:
        image.truncate(1 << 30)
    MOUNT.mkdir()
    subprocess.run([find('mkfs.ext4'), '-q', IMAGE], check=True)


def mount():
    return subprocess.run([find('mount'), '-o', 'loop', IMAGE, MOUNT], stderr=subprocess.PIPE, text=True)


def unmount():
    # The kernel may take a moment to let go of a killed process's files.
    eventually(lambda: subprocess.run([find('umount'), MOUNT], stderr=subprocess.DEVNULL).returncode == 0, 30,
               'the disk can be unmounted')


def cut_power():
    folder = os.open(MOUNT, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, SHUTDOWN, struct.pack('I', NO_LOG_FLUSH))
    finally:
        os.close(folder)


def test():
    dice = random.Random(5)
    ledger = SCRATCH / 'ledger'
    receiver = sink('--ledger', ledger)
    relay = Relay('--smarthost', '127.0.0.1:2600', '--retry', '1s', '--retry-uncertain', '1s', '--hold', '1s',
                  '--segment-size', '8M', '--max-message-size', '1M', '--spool-reserve', '8M')
    relay.spool = MOUNT / 'spool'
    relay.start()
    loader = start_load('--messages', MESSAGES, '--connections', 20, '--ledger', ledger, '--retry-refused',
                        '--give-up', '60s', '--size', 'uniform:100-30000')
    for _ in range(CUTS):
        time.sleep(dice.uniform(0.05, 0.5))
        cut_power()
        # It goes on without its disk for a moment, under load.
        time.sleep(dice.uniform(0, 0.3))
        relay.kill()
        unmount()
        equal(mount().returncode, 0, 'mounted again')
        relay.start()
    report = finish_load(loader)
    equal((report['exit_code'], report['accepted']), (0, MESSAGES), f'load generator {report}')
    eventually(lambda: receiver.status()['recipients'] >= MESSAGES, 60, 'everything arrives')
    time.sleep(2.5)  # retries of what may have been delivered
    relay.stop()
    verdict = receiver.finish()['ledger']
    counts = {name: count for name, count in verdict.items() if isinstance(count, int)}
    print(f'{CUTS} power cuts: {counts}; {log_of("relay").count("cannot be written")} times the disk was said to be gone')
    for fault in ('missing', 'altered', 'unknown'):
        equal(verdict[fault], 0, f'{fault}: {verdict}')


def with_disk():
    try:
        test()
    finally:
        subprocess.run([find('umount'), '-l', MOUNT], stderr=subprocess.DEVNULL)


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink')
    for name in ('mkfs.ext4', 'mount', 'umount'):
        if not find(name):
            skip(f'{name} is not installed')
    isolate()
    make_disk()
    mounted = mount()
    if mounted.returncode != 0:
        shutil.rmtree(SCRATCH, ignore_errors=True)
        skip(f'no loop device here: {mounted.stderr.strip()}')
    run(with_disk)
