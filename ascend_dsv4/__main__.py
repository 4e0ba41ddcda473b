# SPDX-License-Identifier: Apache-2.0
"""`python -m ascend_dsv4`."""

from __future__ import annotations

import sys

from ascend_dsv4.cli import main

if __name__ == "__main__":
    sys.exit(main())
