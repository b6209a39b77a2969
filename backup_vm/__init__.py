# SPDX-License-Identifier: GPL-2.0-or-later
"""The backup VM's side of sparsebak: the archive and all that is done with it.

May import ``wire`` and ``common``, never ``dom0_agent``: the two meet only through services.
"""

import os
import signal
import sys

if os.path.basename(sys.argv[0] if sys.argv else "") in ("sparsebak", "spbk-assemble"):
    # Until the command has handlers of its own, Ctrl-C ends it as it ends any program: Python's
    # answer would be a traceback from the middle of an import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
