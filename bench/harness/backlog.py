"""What a backlog costs: mail is taken in while its only receiver is down, then the relay is restarted,
then the receiver comes back.

Each row tells, for so many messages queued for so many destinations: the rate and the CPU of taking
them in (and of the last tenth alone, which would show a cost that grows with the queue), memory a
message, the time from the start of a fresh process until it takes mail again, and the rate and CPU of
delivering it all.
"""
import pathlib
import shutil
import tempfile
import time

from . import machine, programs, relays
from .programs import Broken


def run(options, scratch, messages, destinations):
    directory = pathlib.Path(tempfile.mkdtemp(dir=scratch))
    port = programs.free_port()
    server = sink = relay = None
    try:
        server = programs.NameServer(directory, 'backlog.invalid', '*.many MX 10 host\nhost A 127.1.0.1\n')
        kind = relays.millrace('disk', int(options.shards[0]), [
            '--dns-server', f'127.0.0.1:{server.port}', '--remote-port', port,
            '--allow-private-destinations', '--destination-connections', 8, '--connect-rate', '1000/s',
            '--hold', '2s', '--retry', '2s', '--reports', 'none'])
        relay = kind(options.build, directory, port, True, options)
        relay.start()
        relay.tree.settle()
        empty = relay.tree.memory()

        def take_in(count):
            cpu = relay.tree.cpu_seconds()
            report = programs.load(options.build, relay.port, '--messages', count, '--connections',
                                   options.connections, '--size', options.backlog_size, '--retry-refused',
                                   '--domains', f'uniform:{destinations}:many.backlog.invalid', seconds=1800)
            if report['accepted'] != count:
                raise Broken(f'{report["accepted"]} of {count} were accepted')
            return report, (relay.tree.cpu_seconds() - cpu) * 1e6 / count
        most, us = take_in(messages * 9 // 10)
        last, last_us = take_in(messages - messages * 9 // 10)
        time.sleep(0.5)
        queued = relay.tree.memory()

        relay.stop()
        started = time.monotonic()
        relay = kind(options.build, directory, port, True, options)
        relay.start()
        recovery = time.monotonic() - started
        recovery_cpu = relay.tree.cpu_seconds()
        recovered = relay.tree.memory()

        before = relay.tree.cpu_seconds()
        sink = programs.Sink(options.build, listen=(f'127.1.0.1:{port}',))
        complete = sink.wait_for(messages, 60)
        cpu = relay.tree.cpu_seconds() - before
        result = sink.finish()
        if not complete:
            raise Broken(f'{messages - result["recipients"]} of {messages} did not arrive')
        return {'messages': messages, 'destinations': destinations,
                'intake_rate': most['messages_per_second'], 'intake_us': us,
                'last_tenth_rate': last['messages_per_second'], 'last_tenth_us': last_us,
                'octets_a_message': (queued - empty) / messages, 'recovery_s': recovery,
                'recovery_cpu_s': recovery_cpu, 'recovered_octets_a_message': (recovered - empty) / messages,
                'drain_rate': messages / result['seconds'] if result['seconds'] else 0,
                'drain_us': cpu * 1e6 / messages}
    finally:
        for part in (relay, server):
            if part:
                part.stop()
        if sink:
            sink.kill()
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)


def run_all(options, scratch):
    print(f'\nBacklog: one receiver is down, messages of {options.backlog_size} octets, '
          f'{options.shards[0]} shard(s), durable')
    headings = ('messages', 'destinations', 'in msg/s', 'in us', 'last 10% us', 'octets/msg', 'restart s',
                'out msg/s', 'out us')
    print(''.join(f'{heading:>14}' for heading in headings), flush=True)
    found = []
    for messages in options.backlog:
        for destinations in options.backlog_destinations:
            if destinations > messages:
                continue
            try:
                row = run(options, scratch, messages, destinations)
            except Broken as problem:
                print(f'{messages:>14}{destinations:>14}  {problem}', flush=True)
                continue
            found.append(row)
            print(f'{messages:>14}{destinations:>14}{row["intake_rate"]:>14.0f}{row["intake_us"]:>14.1f}'
                  f'{row["last_tenth_us"]:>14.1f}{row["octets_a_message"]:>14.0f}{row["recovery_s"]:>14.2f}'
                  f'{row["drain_rate"]:>14.0f}{row["drain_us"]:>14.1f}', flush=True)
    return found
