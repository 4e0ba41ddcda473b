# SPDX-License-Identifier: Apache-2.0
"""What to run when: requests, scheduler, step loop. Python integers and numpy only."""
