# SPDX-License-Identifier: Apache-2.0
"""Dumps of msprobe (MindStudio Probe): read, examined, computed again with the references, compared with a second dump.

`dump` reads what a step of a rank recorded, `tensor_files` the tensors beside it. `examination` says what speaks against a
dump by itself, `known_apis` which recorded calls are operators of this package, `pairing` compares the records of two dumps,
`verdicts` what msprobe would say of them and `table` writes that as msprobe does. `importing` is the command.
"""
