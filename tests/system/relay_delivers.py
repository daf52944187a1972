#!/usr/bin/env python3
"""What was accepted arrives once, unaltered, whichever way it comes in and goes out; an event tells of
every recipient; SIGTERM with nothing to do ends with 0.

  relay_delivers.py [WAY ...]    only these of the ways below
"""
import sys

from harness import SCRATCH, SLOWER, Relay, check, equal, eventually, isolate, load, need, run, sink

MESSAGES = 2000 // SLOWER


def deliver(number, ways, sink_options, relay_options=(), recipients=1):
    if sys.argv[1:] and number not in sys.argv[1:]:
        return None
    ledger = SCRATCH / f'ledger-{number}'
    receiver = sink('--ledger', ledger, *sink_options)
    relay = Relay('--smarthost', '127.0.0.1:2600', *relay_options, name=f'relay-{number}').start()
    load('--messages', MESSAGES, '--connections', 20, '--recipients', recipients, '--ledger', ledger,
         '--leading-dots', 0.1, '--size', 'uniform:100-60000', *ways)
    check(receiver.wait_for(MESSAGES * recipients, 20), f'{number}: everything arrives')
    eventually(lambda: len(relay.events('delivered')) == MESSAGES * recipients, 20, 'events')
    relay.stop()
    result = receiver.finish()
    for fault in ('missing', 'duplicates', 'explained_duplicates', 'altered', 'unknown', 'without_id'):
        equal(result['ledger'][fault], 0, f'{number}: {fault}')
    equal(result['mistakes'], {}, f'{number}: mistakes of the relay as a client')
    delivered = relay.events('delivered')
    equal(len({(e['spool_id'], e['recipient']) for e in delivered}), MESSAGES * recipients,
          f'{number}: each recipient is delivered once')
    return result


def test():
    if result := deliver('data-to-data', [], ['--chunking', 'off']):
        equal(result['by_bdat'], 0, 'messages by BDAT to a sink without CHUNKING')
    if result := deliver('data-to-bdat', [], []):
        equal(result['by_bdat'], result['messages'], 'messages by BDAT to a sink with CHUNKING')
    deliver('bdat-to-data', ['--bdat'], ['--chunking', 'off'])
    deliver('bdat-to-bdat', ['--bdat', '--reuse', '3'], [], recipients=3)
    deliver('lockstep', ['--pipelining', 'off', '--reuse', '1'], ['--pipelining', 'off', '--chunking', 'off'])
    deliver('two-shards', [], [], ['--shards', '2'], recipients=2)
    deliver('memory', [], [], ['--durability', 'memory'])
    deliver('floor', [], [], ['--io-features', 'none'])


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink')
    isolate()
    run(test)
