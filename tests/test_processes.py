"""The tests' own way to start programs: what a program sees and leaves is what a new interpreter would give it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import LOADED, run_python, start_python

SEEN = (
    "import json, os, sys; print(json.dumps({'argv': sys.argv, 'cwd': os.getcwd(), 'path': sys.path[:2], 'tests': "
    "[p for p in sys.path if 'tests' in p], 'var': os.environ.get('OF_A_TEST'), 'home': os.environ.get('HOME'), "
    "'main': __name__, 'leader': os.getpgid(0) == os.getpid(), 'in': sys.stdin.read()}))"
)


def test_a_program_sees_what_a_new_interpreter_would_show_it(tmp_path):
    env = {**os.environ, "OF_A_TEST": "ü"}
    ours = run_python(["-c", SEEN, "one", 2], cwd=tmp_path, env=env)
    command = [sys.executable, "-c", SEEN, "one", "2"]
    silent = subprocess.DEVNULL
    real = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=env, stdin=silent, start_new_session=True
    )
    assert json.loads(ours.stdout) == json.loads(real.stdout)
    assert ours.returncode == 0 and ours.stderr == ""


def test_the_libraries_are_there_before_it_begins():
    done = run_python(["-c", f"import sys; print([name for name in {LOADED} if name not in sys.modules])"])
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [("print(1)", 0), ("import sys; sys.exit(3)", 3), ("1 / 0", 1), ("import sys; sys.exit('no')", 1)],
)
def test_exit_codes_are_the_interpreters(code, expected):
    assert run_python(["-c", code]).returncode == expected


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
