from __future__ import annotations

import subprocess
import sys
import textwrap

from satm_tf import storage


def test_one_process_at_a_time(tmp_path):
    script = textwrap.dedent(
        f"""
        import pathlib
        from satm_tf.storage import lock
        try:
            with lock(pathlib.Path({str(tmp_path)!r})):
                print("taken")
        except ValueError as error:
            print(error)
        """
    )

    def other():
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    with storage.lock(tmp_path):
        assert "Another process is at work in" in other()
    assert other() == "taken\n"
