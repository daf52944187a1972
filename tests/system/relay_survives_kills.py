#!/usr/bin/env python3
"""Two hundred times SIGKILL, several a second, on one spool, with one sender and one receiver that keep a ledger
from beginning to end: nothing accepted is missing or altered, and what comes twice stays within promise 2."""
import random
import time

from harness import (LONG, SCRATCH, SLOWER, Relay, check, equal, eventually, finish_load, isolate, need, run, sink,
                     start_load)

KILLS = (1000 if LONG else 200) // SLOWER
CONNECTIONS = 5   # to the receiver
RATE = 400        # messages a second, while the relay lives
# Promise 2 for one kill: a message of each connection whose reply was under way, and the outcomes of the last
# 100 ms. How many those are is bounded by what the receiver takes in 100 ms; each reply takes 5 ms, so a
# connection ends at most 20 messages in that time.
DUPLICATES_A_KILL = CONNECTIONS * (1 + 20)


def test():
    chance = random.Random(1)
    ledger = SCRATCH / 'ledger'
    receiver = sink('--ledger', ledger, '--latency', '5ms')
    relay = Relay('--smarthost', '127.0.0.1:2600', '--retry', '1s', '--retry-uncertain', '1s', '--hold', '1s',
                  '--destination-connections', CONNECTIONS, '--segment-size', '4M', '--max-message-size', '1M', '--spool-reserve', '8M').start()
    loader = start_load('--messages', KILLS * 50, '--rate', RATE, '--connections', 10, '--ledger', ledger,
                        '--retry-refused', '--give-up', '250s', '--size', 'uniform:100-30000')
    begun = time.monotonic()
    down = 0
    for _ in range(KILLS):
        time.sleep(chance.uniform(0, 0.25))
        relay.kill()
        stopped = time.monotonic()
        # Sometimes it is killed again before it has recovered.
        if chance.random() < 0.2:
            relay.launch()
            time.sleep(chance.uniform(0, 0.03))
            relay.kill()
        relay.start()
        down += time.monotonic() - stopped
    seconds = time.monotonic() - begun
    report = finish_load(loader, 300)
    equal(report['exit_code'], 0, f'load generator {report}')
    equal(report['accepted'], KILLS * 50, 'accepted')
    eventually(lambda: receiver.status()['recipients'] >= KILLS * 50, 120, 'everything arrives')
    time.sleep(2.5)  # retries of what may have been delivered come later
    relay.stop()
    verdict = receiver.finish()['ledger']
    print(f'{KILLS} kills in {seconds:.0f} s ({down / KILLS * 1000:.0f} ms down each): {verdict}', flush=True)
    for fault in ('missing', 'altered', 'unknown'):
        equal(verdict[fault], 0, f'{fault}: {verdict}')
    check(verdict['duplicates'] <= KILLS * DUPLICATES_A_KILL, f'duplicates: {verdict}')


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink')
    isolate()
    run(test)
