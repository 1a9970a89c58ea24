"""The demo's benchmark: the table's ratio and targets, and the busy core, which ends with its block."""

from bench_demo import BUSY, IDLE, SECOND, busy_core, table
from usage import Usage


def test_the_table_names_what_is_missed():
    used = {
        IDLE: [Usage(120, 200, 2**30), Usage(140, 210, 2**30), Usage(160, 220, 3 * 2**30)],
        SECOND: [Usage(21, 20, 2**30)] * 3,
        BUSY: [Usage(182, 230, 2**30)] * 3,
    }
    rows = table(used).splitlines()[4:]
    assert rows[0] == "| idle | 140 | 210 | 3.0 GiB | 150 s: met |"
    assert rows[1] == "| second call | 21 | 20 | 1.0 GiB | 20 s: MISSED |"
    assert rows[2] == "| beside one busy core | 182 (1.30 x idle) | 230 | 1.0 GiB | 1.4 x idle: met |"


def test_the_busy_core_ends_with_its_block():
    with busy_core() as process:
        assert process.poll() is None
    assert process.poll() is not None
