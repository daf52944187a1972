#!/usr/bin/env python3
"""Builds and runs every test of the tree; tools/test calls it once the packages are there.

Stages, in this order:
  layers   includes point one way (tests/layers.py), each row of the checklist has a test (tests/rows.py)
  sim      release build in build/; whole relays in simulation, crash tests, mutants, transcripts, hostile receivers;
           with --long the unit tests too
  asan     unit tests, and fewer of the above, under AddressSanitizer and UndefinedBehaviorSanitizer, in build-asan/
           (clang); with --long also system tests with such a relay
  tsan     the tests of what crosses cores, and a share of the simulation, under ThreadSanitizer, in build-tsan/, and a
           system test with such a relay of two shards; with --long all unit tests
  fuzz     a short run of every fuzzer, in build-fuzz/ (clang)
  system   tests/system/*.py: whole programs; each says itself why it is skipped (exit code 77)

Every case of a GoogleTest program counts as one test, every other program or script as one. A stage
that cannot be built is one failure, and the others still run.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as xml

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKIP = 77

STRICT_SANITIZERS = {
    'ASAN_OPTIONS': 'detect_stack_use_after_return=1:strict_string_checks=1:abort_on_error=1',
    'UBSAN_OPTIONS': 'halt_on_error=1:print_stacktrace=1',
    'TSAN_OPTIONS': 'halt_on_error=1:second_deadlock_stack=1',
}


class Tally:
    def __init__(self):
        self.passed = 0
        self.failures = []
        self.skips = []

    def fail(self, name, output=''):
        last = (output.strip().splitlines() or [''])[-1].removeprefix('FAILED: ')
        self.failures.append(f'{name} ({last})' if last else name)
        if output:
            print('\n'.join(output.strip().splitlines()[-60:]))
        print(f'FAILED  {name}', flush=True)

    def skip(self, name, reason):
        self.skips.append(name)
        print(f'skipped {name}: {reason}', flush=True)

    def add(self, other):
        with ADDING:
            self.passed += other.passed
            self.failures += other.failures
            self.skips += other.skips


ADDING = threading.Lock()


def run(command, timeout, env=None):
    """(exit code or None on time-out, output). The command's whole process group ends with it."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               stdin=subprocess.DEVNULL, text=True, errors='replace',
                               env={**os.environ, **(env or {})}, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except BaseException as problem:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        output = process.communicate()[0]
        if not isinstance(problem, subprocess.TimeoutExpired):
            raise
        return None, output + f'\n(stopped after {timeout} s)'


def differs(made, options):
    """Whether a build folder has other values than these options ask for."""
    values = {option['name']: option['value'] for option in made}
    for option in options:
        name, _, wanted = option.removeprefix('--').removeprefix('-D').partition('=')
        value = values.get(name)
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, list):
            value = ' '.join(value)
        if value != wanted:
            return True
    return False


RELEASE = ['--buildtype=release', '-Dtests=true', '-Dbenches=true']


def sanitized(sanitizer):
    """Options of a sanitizer's build: level 1 and line numbers only, since full debug information
    doubles its time."""
    return ['-Doptimization=1', f'-Db_sanitize={sanitizer}', '-Db_lundef=false', '-Dbenches=false',
            '-Ddebug=false', '-Dcpp_args=-g1 -fno-omit-frame-pointer']


def configure(tally, folder, options, env=None):
    made = ROOT / folder / 'meson-info/intro-buildoptions.json'
    if not made.exists():
        code, output = run(['meson', 'setup', folder, *options], 300, env)
    elif differs(json.loads(made.read_text()), options):
        # It was made with other options (tools/quickstart leaves the tests out).
        code, output = run(['meson', 'configure', folder, *options], 300, env)
        if code == 0:
            code, output = run(['ninja', '-C', folder, 'build.ninja'], 300)
    else:
        # The list of tests is that of the last regeneration.
        code, output = run(['ninja', '-C', folder, 'build.ninja'], 300)
    if code != 0:
        tally.fail(f'{folder}: meson', output)
    return code == 0


def compile_targets(tally, folder, targets=()):
    code, output = run(['ninja', '-C', folder, *targets], 3600)
    if code != 0:
        tally.fail(f'{folder}: build', output)
    return code == 0


def build(tally, folder, options, targets=(), env=None):
    return configure(tally, folder, options, env) and compile_targets(tally, folder, targets)


def count_gtest(tally, label, name, report, code, output):
    """Counts the cases of one GoogleTest program from its XML report."""
    for case in xml.parse(report).getroot().iter('testcase'):
        case_name = f'{label}/{name}: {case.get("classname")}.{case.get("name")}'
        if case.find('failure') is not None:
            tally.fail(case_name)
        elif case.get('result') == 'skipped' or case.find('skipped') is not None:
            tally.skip(case_name, 'see its message')
        elif case.get('status') == 'run':
            tally.passed += 1
    if code != 0:
        # Died after its report, or a failure outside of any case.
        if not tally.failures:
            tally.fail(f'{label}/{name}: exit code {code}')
        print('\n'.join(output.strip().splitlines()[-80:]))


def run_program(tally, label, name, command, timeout, env=None):
    own = Tally()
    with tempfile.TemporaryDirectory(prefix='millrace-test-') as scratch:
        report = pathlib.Path(scratch) / 'report.xml'
        started = time.monotonic()
        code, output = run(command, timeout, {**STRICT_SANITIZERS, **(env or {}),
                                              'GTEST_OUTPUT': f'xml:{report}'})
        seconds = time.monotonic() - started
        if report.exists() and code is not None:
            count_gtest(own, label, name, report, code, output)
        elif code == 0:
            own.passed = 1
        elif code == SKIP:
            own.skip(f'{label}/{name}', (output.strip().splitlines() or ['no reason given'])[-1])
        else:
            own.fail(f'{label}/{name}: ' + ('time-out' if code is None else f'exit code {code}'),
                     output)
        print(f'  {label}/{name}: {own.passed} passed in {seconds:.1f} s', flush=True)
    tally.add(own)


def introspect(folder, what):
    return json.loads(subprocess.run(['meson', 'introspect', f'--{what}', folder], cwd=ROOT, text=True,
                                     stdout=subprocess.PIPE, check=True).stdout)


def is_unit_test(test):
    return 'millrace:unit' in test['suite']


def meson_tests(folder):
    # Google Benchmark programs are built, so that they keep building, and not run.
    return [test for test in introspect(folder, 'tests')
            if not any(suite.endswith('bench') for suite in test['suite'])]


def programs_of(tests, folder):
    return sorted({os.path.relpath(test['cmd'][0], ROOT / folder) for test in tests})


def run_together(jobs):
    """Calls each of these, as many at a time as there are processors."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(*job) for job in jobs]:
            done.result()


def run_meson_tests(tally, label, tests, options, slower=1, arguments=None):
    jobs = []
    for test in tests:
        env = dict(test.get('env') or {})
        if options.long:
            env['MILLRACE_TEST_LONG'] = '1'
        timeout = (test.get('timeout') or 30) * slower * (20 if options.long else 4)
        jobs.append((run_program, tally, label, test['name'], test['cmd'] + (arguments or {}).get(test['name'], []),
                     timeout, env))
    run_together(jobs)


def stage_layers(tally, options):
    for script in ('layers', 'rows'):
        code, output = run([sys.executable, f'tests/{script}.py'], 60)
        if code == 0:
            tally.passed += 1
        else:
            tally.fail(script, output)


def build_release(tally, unit_tests):
    """Builds build/. Unit tests take a compiler minutes, and the sanitizers' builds run them all."""
    folder = 'build'
    if not configure(tally, folder, RELEASE):
        return False
    targets = [] if unit_tests else [
        os.path.relpath(made, ROOT / folder) for target in introspect(folder, 'targets') for made in target['filename']
        if target['build_by_default'] and not pathlib.Path(target['defined_in']).is_relative_to(ROOT / 'tests/unit')]
    return compile_targets(tally, folder, targets)


def stage_sim(tally, options):
    if build_release(tally, unit_tests=options.long):
        tests = [test for test in meson_tests('build') if options.long or not is_unit_test(test)]
        run_meson_tests(tally, 'sim', tests, options)


def run_system_test(tally, label, folder, script, *arguments):
    """One of tests/system with the relay of this build folder, and the tools of build/."""
    if build(tally, 'build', RELEASE, ['millrace-load', 'millrace-sink']):
        run_program(tally, label, script, [sys.executable, f'tests/system/{script}.py', *arguments], 600,
                    {'MILLRACE_RELAY': str(ROOT / folder / 'millrace'), 'MILLRACE_TEST_SLOWER': '5'})


CLANG = {'CC': 'clang-14', 'CXX': 'clang++-14'}


def stage_asan(tally, options):
    folder = 'build-asan'
    # Clang's checks of undefined behaviour are more than GCC's: a number that does not fit the integer it is cast to.
    if not configure(tally, folder, sanitized('address,undefined'), CLANG):
        return
    tests = meson_tests(folder)
    if not compile_targets(tally, folder, programs_of(tests, folder) + (['millrace'] if options.long else [])):
        return
    # What plays many worlds, of which each takes ten times as long here, plays fewer.
    fewer = {'spool_crash': ['--gtest_filter=*EveryMomentOfTheLog*']}
    if not options.long:
        fewer |= {'relay_sim': ['--seeds', '1-100']}
    run_meson_tests(tally, 'asan', tests, options, slower=3, arguments=fewer)
    if options.long:
        for script in ('relay_delivers', 'relay_retries', 'relay_survives_kill'):
            run_system_test(tally, 'asan', folder, script)


def stage_tsan(tally, options):
    # What the kernel does through a ring is not seen by ThreadSanitizer, and need not be: a ring and its buffers belong
    # to one thread. Nor has it anything to see in a test of one thread: those run with --long.
    folder = 'build-tsan'
    if not configure(tally, folder, sanitized('thread')):
        return
    crossing = ('reactor_parts', 'spool_uring', 'relay', 'relay_sim')
    tests = [test for test in meson_tests(folder)
             if test['name'] in crossing or (options.long and is_unit_test(test))]
    if len(tests) < len(crossing):
        tally.fail('tsan: tests are missing: there are ' + ', '.join(test['name'] for test in tests))
    if not compile_targets(tally, folder, ['millrace', *programs_of(tests, folder)]):
        return
    run_meson_tests(tally, 'tsan', tests, options, slower=3,
                    arguments={'relay_sim': ['--seeds', '1-200' if options.long else '1-25']})
    run_system_test(tally, 'tsan', folder, 'relay_delivers', 'two-shards')


def stage_fuzz(tally, options):
    if not build(tally, 'build-fuzz', ['--buildtype=debugoptimized', '-Dfuzzers=true',
                                       '-Db_lundef=false'],
                 env=CLANG):
        return
    seconds = 600 if options.long else 5
    fuzzers = sorted(p for p in (ROOT / 'build-fuzz/tests/fuzz').glob('fuzz_*')
                     if p.is_file() and os.access(p, os.X_OK))
    if not fuzzers:
        tally.fail('fuzz: no fuzzer was built')

    def fuzz(program):
        with tempfile.TemporaryDirectory(prefix='millrace-fuzz-') as grown:
            # New inputs go to the first folder; the corpus in the tree is only read.
            seeds = ROOT / 'tests/fuzz/corpus' / program.name.removeprefix('fuzz_')
            command = [str(program), f'-max_total_time={seconds}', '-rss_limit_mb=2048', '-timeout=10',
                       '-print_final_stats=0', f'-artifact_prefix={ROOT}/build-fuzz/', grown]
            run_program(tally, 'fuzz', program.name, command + ([str(seeds)] if seeds.is_dir() else []),
                        seconds + 300)

    run_together([(fuzz, program) for program in fuzzers])


def stage_system(tally, options):
    if not build_release(tally, unit_tests=False):
        return
    os.sync()  # what builds have written must not be in the way of relays that wait for their disk
    for script in sorted((ROOT / 'tests/system').glob('[a-z]*.py')):
        if re.search(r"^if __name__ == '__main__':", script.read_text(), re.MULTILINE):
            run_program(tally, 'system', script.stem, [sys.executable, str(script)],
                        3600 if options.long else 900,
                        {'MILLRACE_TEST_LONG': '1'} if options.long else None)


STAGES = {'layers': stage_layers, 'sim': stage_sim, 'asan': stage_asan, 'tsan': stage_tsan,
          'fuzz': stage_fuzz, 'system': stage_system}


def main():
    parser = argparse.ArgumentParser(prog='tools/test', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--long', action='store_true', help='more seeds, longer fuzzing')
    parser.add_argument('--only', metavar='STAGE,...', help='default: all, ' + ','.join(STAGES))
    options = parser.parse_args()
    wanted = options.only.split(',') if options.only else list(STAGES)
    for name in wanted:
        if name not in STAGES:
            parser.error(f'no stage {name!r}; there are {", ".join(STAGES)}')
    tally = Tally()
    for name in wanted:
        started = time.monotonic()
        print(f'== {name}', flush=True)
        STAGES[name](tally, options)
        print(f'== {name}: {time.monotonic() - started:.0f} s', flush=True)
    for name in tally.failures:
        print(f'FAILED  {name}')
    print(f'{tally.passed} passed, {len(tally.failures)} failed, {len(tally.skips)} skipped')
    return 1 if tally.failures or not tally.passed else 0


if __name__ == '__main__':
    sys.exit(main())
