# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that becomes a checker of file systems (e2fsck and the like), which parses what a
qube wrote and is written in C: it gives up what it does not need first, see sandbox.

Run as a program, which imports nothing but sandbox. Arguments: the folder of modules, the
descriptor of the image, seconds of the processor's time, whether it may write, and the command,
which finds the image in /proc/self/fd.
"""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])

from backup_vm.files import sandbox


def main() -> None:
    """Give up rights, and become the checker."""
    descriptor, seconds, writing, *command = sys.argv[2:]
    sandbox.enter_for(int(descriptor), int(seconds), writing == "writing")
    os.execve(command[0], command, {"LC_ALL": "C"})  # noqa: S606


if __name__ == "__main__":
    main()
