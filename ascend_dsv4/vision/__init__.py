# SPDX-License-Identifier: Apache-2.0
"""Images on their way into a prompt: fetched, decoded, cut into patches, laid out as token positions. No framework."""
