# SPDX-License-Identifier: Apache-2.0
"""The errors a user can meet. Each message says where, got, expected, because, and what to do."""

from __future__ import annotations


class AscendDsv4Error(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(AscendDsv4Error, ValueError):
    """A model configuration, option or configuration file that cannot be used as given."""


class CheckpointError(AscendDsv4Error, ValueError):
    """Checkpoint files that are damaged, incomplete, or do not fit the model configuration."""


class UnsupportedError(AscendDsv4Error):
    """A valid request for something this version, backend or implementation cannot do."""


class CapacityError(AscendDsv4Error):
    """Memory or cache space too small for what was asked."""


class RequestError(AscendDsv4Error, ValueError):
    """One request that cannot be served as sent: too long, out of vocabulary, bad parameter."""


class DumpError(AscendDsv4Error, ValueError):
    """A recording of somebody's run, such as an msprobe dump, that is damaged, incomplete, unsafe or empty."""


class CapsuleError(AscendDsv4Error, ValueError):
    """Recorded operator calls that cannot be written, are damaged or incomplete, or do not fit this version."""
