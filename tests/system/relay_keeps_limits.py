#!/usr/bin/env python3
"""No limit is exceeded across shards, seen from the receiver; a receiver that closes after N messages
without a word costs nothing; one that refuses connections is not hammered."""
from harness import SCRATCH, Relay, check, equal, isolate, load, need, run, sink


def through(number, sink_options, relay_options, messages, load_options=()):
    ledger = SCRATCH / f'ledger-{number}'
    receiver = sink('--ledger', ledger, *sink_options)
    relay = Relay('--smarthost', '127.0.0.1:2600', '--shards', '2', '--retry', '1s',
                  '--retry-uncertain', '1s', '--hold', '1s', *relay_options, name=f'relay-{number}').start()
    load('--messages', messages, '--connections', 20, '--ledger', ledger, *load_options)
    check(receiver.wait_for(messages, 30), f'{number}: everything arrives')
    relay.stop()
    result = receiver.finish()
    for fault in ('missing', 'duplicates', 'altered', 'unknown'):
        equal(result['ledger'][fault], 0, f'{number}: {fault}')
    return result, relay


def test():
    result, _ = through('connections', ['--latency', '2ms'], ['--destination-connections', '3'], 2000)
    check(result['most_connections_of_a_client'] <= 3, f'connections: {result}')

    result, _ = through('one', [], ['--destination-connections', '1', '--initial-connections', '1'], 2000)
    equal(result['most_connections_of_a_client'], 1, 'connections at a limit of one')

    result, _ = through('messages', [], ['--messages-per-connection', '7'], 2000)
    check(result['most_messages_on_a_connection'] <= 7, f'messages on a connection: {result}')

    result, relay = through('silent-close', ['--messages-per-connection', '20'], [], 2000)
    equal(len(relay.events('deferred')), 0, 'deferrals because of a silent close')

    result, _ = through('rate', [], ['--destination-rate', '200/s'], 600)
    # A second may begin in the middle of a burst, but no second may hold more than rate and burst.
    check(result['seconds'] > 1.5, f'600 messages at 200/s took {result["seconds"]} s')


if __name__ == '__main__':
    need('millrace', 'millrace-load', 'millrace-sink')
    isolate()
    run(test)
