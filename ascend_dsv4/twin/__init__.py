# SPDX-License-Identifier: Apache-2.0
"""CPU stand-ins for what runs on an Ascend device: the Ascend C kernels, compiled unchanged against `cann_kernels/twin`."""
