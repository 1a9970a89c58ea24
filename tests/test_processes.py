"""The tests' own way to start programs: what a program sees and leaves is what a new interpreter would give it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked_python import LOADED, interpreter
from processes import run_python, start_python

SEEN = (
    "import json, os, sys; print(json.dumps({'argv': sys.argv, 'cwd': os.getcwd(), 'path': sys.path[:2], 'tests': "
    "[p for p in sys.path if 'tests' in p], 'var': os.environ.get('OF_A_TEST'), 'home': os.environ.get('HOME'), "
    "'main': __name__, 'leader': os.getpgid(0) == os.getpid(), 'in': sys.stdin.read()}))"
)


def test_a_program_sees_what_a_new_interpreter_would_show_it(tmp_path):
    env = {**os.environ, "OF_A_TEST": "ü"}
    ours = run_python(["-c", SEEN, "one", 2], cwd=tmp_path, env=env)
    real, forked = (
        subprocess.run(
            [python, "-c", SEEN, "one", "2"],
            **{"capture_output": True, "text": True, "cwd": tmp_path, "env": env, "start_new_session": True},
            stdin=subprocess.DEVNULL,
        )
        for python in (sys.executable, interpreter())
    )
    assert json.loads(ours.stdout) == json.loads(real.stdout) == json.loads(forked.stdout)
    assert ours.returncode == forked.returncode == 0 and ours.stderr == forked.stderr == ""


def test_the_libraries_are_there_before_it_begins():
    done = run_python(["-c", f"import sys; print([name for name in {LOADED} if name not in sys.modules])"])
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [("print(1)", 0), ("import sys; sys.exit(3)", 3), ("1 / 0", 1), ("import sys; sys.exit('no')", 1)],
)
def test_exit_codes_are_the_interpreters(code, expected):
    assert run_python(["-c", code]).returncode == expected
    forked = subprocess.run([interpreter(), "-c", code], capture_output=True, text=True)
    assert forked.returncode == expected
    assert ("ZeroDivisionError" in forked.stderr) == ("/ 0" in code) and (forked.stderr == "no\n") == ("'no'" in code)


def test_the_interpreter_has_the_libraries_and_not_the_kit(tmp_path):
    """The kit is the one on the program's path, wherever the program was started from."""
    (tmp_path / "cassava_kit").mkdir()
    (tmp_path / "cassava_kit" / "__init__.py").write_text("HERE = 7")
    code = "import sys; print('torch' in sys.modules, 'cassava_kit' in sys.modules); import cassava_kit as kit"
    code += "; print(kit.HERE); import subprocess; print(subprocess.run([sys.executable, '-c', 'exit(3)']).returncode)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    said = subprocess.run([interpreter(), "-c", code], capture_output=True, text=True, cwd="/", env=env)
    assert said.stdout == "True False\n7\n3\n", said.stderr


def test_flags_that_multiprocessing_passes_on_are_taken():
    """-B is there wherever PYTHONDONTWRITEBYTECODE is; a real interpreter would load the libraries anew."""
    code = "import sys; print('torch' in sys.modules, sys.dont_write_bytecode)"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    said = [
        subprocess.run([interpreter(), *flags, "-c", code], capture_output=True, text=True, env=env).stdout
        for flags in (["-B", "-u"], [])
    ]
    assert said == ["True True\n", "True False\n"]


def test_what_the_interpreter_cannot_do_is_the_real_ones():
    code = "import sys; print('torch' in sys.modules, sys.flags.dev_mode)"
    said = subprocess.run([interpreter(), "-X", "dev", "-c", code], capture_output=True, text=True)
    assert said.stdout == "False True\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_a_forked_program_and_who_waits_for_it_knows(number, tmp_path):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    program = subprocess.Popen(
        [interpreter(), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    inside = Path("/proc", program.stdout.readline().strip())
    assert inside.exists()
    program.send_signal(number)
    assert program.wait() == -number
    program.stdout.close()
    while inside.exists():
        time.sleep(0.01)


def test_files_and_blocked_signals_are_handed_over():
    """As `spawn` of multiprocessing does."""
    reading, writing = os.pipe()
    code = f"import os, signal; os.write({writing}, repr(signal.pthread_sigmask(signal.SIG_BLOCK, [])).encode())"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        subprocess.run([interpreter(), "-c", code], pass_fds=[writing], check=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
    assert os.read(reading, 100) == b"{<Signals.SIGINT: 2>}"
    os.close(reading)


def test_a_script_a_module_and_work_left_to_the_end(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 7")
    script = tmp_path / "script.py"
    script.write_text("import atexit, beside, sys; atexit.register(print, 'last'); print(beside.VALUE, sys.argv[1:])")
    assert run_python([script, "x"]).stdout == "7 ['x']\nlast\n"
    shown = run_python(["-m", "cassava_kit", "recipes", "small_resnet"], cwd=tmp_path)
    assert shown.returncode == 0 and '"recipe": "small_resnet"' in shown.stdout, shown.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc, which Linux has")
def test_a_program_can_be_stopped_with_all_that_it_started(tmp_path):
    code = (
        "import subprocess, time; p = subprocess.Popen(['sleep', '600']); open('pid', 'w').write(str(p.pid)); p.wait()"
    )
    program = start_python(["-c", code], cwd=tmp_path)
    program.wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = Path("/proc", (tmp_path / "pid").read_text(), "cmdline")
    program.kill()
    assert program.poll() == -signal.SIGKILL
    while child.exists() and b"sleep" in child.read_bytes():
        time.sleep(0.01)


def test_ctrl_c_ends_it_as_it_ends_an_interpreter():
    program = start_python(["-c", "import time; print('there', flush=True); time.sleep(600)"])
    program.wait_until(lambda: program.printed()[0])
    program.send_signal(signal.SIGINT)
    assert program.wait() == -signal.SIGINT
