# ruff: noqa: F821 - the cells before define these names
import shutil
import signal
import threading

TIME_LIMIT = float(os.environ.get("CASSAVA_KIT_TIME_LIMIT") or SETTINGS["time_limit"])


def run(arguments, gpus=None):
    """Run a verb in a separate process, on some GPUs or all, until it ends or the session's time is over.

    Returns whether it succeeded. Its finished parts stay in the output, where the next session, with this one's output
    attached, goes on.
    """
    left = TIME_LIMIT - (time.time() - STARTED)
    if left <= 0:
        print("no time left for:", *arguments)
        return False
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {})
    command = [sys.executable, "-m", "cassava_kit", *map(str, arguments)]
    print("$ python -m cassava_kit", *arguments, flush=True)
    # In a separate process group: the processes of data-parallel training end with it.
    process = subprocess.Popen(
        command,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    timer = threading.Timer(left, os.killpg, (process.pid, signal.SIGTERM))
    timer.start()
    for line in process.stdout:
        print(line, end="", flush=True)
    timer.cancel()
    if code := process.wait():
        print(f"exit code {code}:", *arguments, "(attach this notebook's output to itself and run again to go on)")
    return code == 0


def take_up(folder):
    """Copy an earlier session's output, where it is attached: its finished parts are not done again."""
    for earlier in (attached / folder.name for attached in input_folders()):
        if earlier.is_dir():
            shutil.copytree(earlier, folder, dirs_exist_ok=True)
            print(f"went on from {earlier}")


def find_file(name):
    """Return an attached file by its name, of a dataset or another notebook's output; None for an empty name."""
    if not name:
        return None
    # The output of a notebook is in folders below notebooks/<owner>/<slug>.
    found = sorted(file for depth in range(1, 7) for file in INPUT.glob("*/" * depth + name))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name} is there more than once, give more of the path: {', '.join(map(str, found))}")
    raise FileNotFoundError(f"nothing that is attached has {name}; attach the dataset or the notebook that holds it")
