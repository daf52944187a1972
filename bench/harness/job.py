"""The job a relay of this kind is for: many connections to many slow receivers.

100,000 recipient domains drawn by Zipf's law, spread over 1,000 receivers (loopback addresses, found by
MX look-ups at NSD), every reply of theirs delayed by 80 ms, one recipient in ten deferred, three in a
hundred refused. The time is from the first message begun to the last recipient ended, retries of what
was deferred (after 2 s here) included. What it does not show: TLS, and round trips to the sender.
"""
import pathlib
import shutil
import tempfile

from . import machine, programs, relays
from .programs import Broken

RECEIVERS = 1000


def addresses():
    """127.1.0.1 ... of the receivers, and the same as a range for the sink."""
    listed = [f'127.1.{i // 250}.{i % 250 + 1}' for i in range(RECEIVERS)]
    ranges = [(f'127.1.{block}.1', f'127.1.{block}.250') for block in range(RECEIVERS // 250)]
    return listed, ranges


def run(options, scratch, shards):
    directory = pathlib.Path(tempfile.mkdtemp(dir=scratch))
    hosts, ranges = addresses()
    port = programs.free_port()
    records = ''.join(f'h{i} A {address}\n' for i, address in enumerate(hosts))
    records += ''.join(f'd{i} MX 10 h{i % RECEIVERS}\n' for i in range(options.job_domains))
    server = sink = relay = None
    try:
        server = programs.NameServer(directory, 'job.invalid', records)
        sink = programs.Sink(options.build, '--latency', '80ms', '--odds', '*=4xx:0.1,5xx:0.03',
                             listen=[f'{first}-{last}:{port}' for first, last in ranges])
        kind = relays.millrace('disk', shards, [
            '--dns-server', f'127.0.0.1:{server.port}', '--remote-port', port,
            '--allow-private-destinations', '--total-connections', options.job_connections,
            '--destination-connections', options.job_connections, '--connect-rate', '100000/s',
            '--initial-connections', 20, '--retry', '2s', '--hold', '2s', '--reports', 'none'])
        relay = kind(options.build, directory, port, True, options)
        relay.start()
        relay.tree.settle()
        before = relay.tree.cpu_seconds(), machine.system_cpu()[0], relay.statistics()
        report = programs.load(options.build, relay.port, '--connections', options.connections, '--size',
                               20 * 1024, '--domains', f'zipf:{options.job_domains}:job.invalid',
                               '--duration', f'{options.seconds}s', '--retry-refused',
                               *(['--rate', options.job_rate] if options.job_rate else []),
                               seconds=options.seconds + 120)
        accepted = report['accepted']
        if not accepted:
            raise Broken('nothing was accepted')
        complete = sink.wait_for(accepted, 60)
        relay.tree.settle(0.2, 2)
        after = relay.tree.cpu_seconds(), machine.system_cpu()[0], relay.statistics()
        memory = relay.tree.peak_memory
        result = sink.finish()
        ended = result['recipients'] + result['bounced']
        if not complete:
            raise Broken(f'{accepted - ended} of {accepted} messages did not end')
        us = 1e6 / accepted
        return {'messages': accepted, 'intake_rate': report['messages_per_second'],
                'rate': accepted / (result['last_monotonic'] - report['first_monotonic']),
                'relay_us': (after[0] - before[0]) * us, 'system_us': (after[1] - before[1]) * us,
                'connections': result['most_open'], 'delivered': result['recipients'],
                'deferred': result['deferred'], 'bounced': result['bounced'],
                'p50': report['latency_ms']['p50'], 'p99': report['latency_ms']['p99'],
                'memory': memory / (1 << 20), 'mistakes': result['mistakes'],
                'relay': {k: (after[2][k] - before[2].get(k, 0)) / accepted for k in after[2]}}
    finally:
        for part in (relay, server):
            if part:
                part.stop()
        if sink:
            sink.kill()
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)


def run_all(options, scratch):
    print(f'\nThe job: up to {options.job_connections} connections to {RECEIVERS} receivers, replies after 80 ms, '
          f'{options.job_domains} domains by Zipf, 10 % deferred, 3 % refused, 20 KiB')
    found = []
    for shards in options.shards:
        for number in range(options.rounds):
            try:
                row = run(options, scratch, int(shards))
            except Broken as problem:
                print(f'Millrace disk {shards} shards: {problem}', flush=True)
                break
            found.append({'shards': int(shards), **row})
            print(f'Millrace disk {shards} shards, round {number + 1}: {row["rate"]:.0f} messages/s to the end '
                  f'(intake {row["intake_rate"]:.0f}/s), relay {row["relay_us"]:.1f} us a message, machine '
                  f'{row["system_us"]:.0f} us, at most {row["connections"]} connections, p50 {row["p50"]:.1f} ms, '
                  f'p99 {row["p99"]:.1f} ms, {row["memory"]:.0f} MiB; {row["delivered"]} delivered, '
                  f'{row["deferred"]} deferred, {row["bounced"]} refused'
                  + (f'; mistakes {row["mistakes"]}' if row['mistakes'] else ''), flush=True)
    return found
