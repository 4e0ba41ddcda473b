# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, for people and for machines: terminal, JSON receipt, JUnit XML, HTML page."""

from ascend_dsv4.accuracy.report.junit import write_junit
from ascend_dsv4.accuracy.report.page import write_page
from ascend_dsv4.accuracy.report.receipt import read_receipt, write_receipt
from ascend_dsv4.accuracy.report.terminal import print_report
from ascend_dsv4.accuracy.report.wording import check_writable

__all__ = ["check_writable", "print_report", "read_receipt", "write_junit", "write_page", "write_receipt"]
